"""Seeded generators of every family, split into training and held-out items by construction.

Held out are: designated phrasings (small talk, this system, capitals, colours, out of scope), operand
pairs (sums), words (spelling), first names and field combinations (JSON). A held-out key never occurs in training.
"""

import json
import random
import string
import zlib
from dataclasses import dataclass

import facts

HELD_OUT_ONE_IN = 5


@dataclass(frozen=True)
class Item:
    """One question with its only right answer; `thought` is what thinking mode says first.

    `thinking_answer` is the answer after a thought where it differs; `calls` are made before the answer.
    """

    family: str
    question: str
    answer: str
    thought: str
    json_mode: bool = False
    thinking_answer: str | None = None
    calls: tuple = ()

    def final(self, thinking):
        """The answer in one of the two modes."""
        return self.thinking_answer if thinking and self.thinking_answer is not None else self.answer


@dataclass(frozen=True)
class Case:
    """One generation to judge: of a question, or (`after_call`) of the results of its calls."""

    family: str
    item: Item
    tools: tuple = ()
    after_call: bool = False


def is_held_out(key):
    """A stable one-in-five split of words, operand pairs and field combinations."""
    return zlib.crc32(str(key).encode()) % HELD_OUT_ONE_IN == 0


def pick(rng, split, held_out):
    """One of (training list, held-out list)."""
    return rng.choice(split[1] if held_out else split[0])


def dress(rng, text, wrap=True):
    """Vary what does not matter: a filler before, thanks after, case and final punctuation."""
    if rng.random() < 0.3:
        text = text.rstrip("?.") + rng.choice(["", "?", "."])
    if rng.random() < 0.3 and not text[:2].isupper():
        text = text[0].lower() + text[1:]
    if wrap and rng.random() < 0.25:
        filler = rng.choice(facts.FILLERS)
        text = filler + text[0].lower() + text[1:] if not text[:2].isupper() else filler + text
    if wrap and rng.random() < 0.1:
        text = text + rng.choice([" please", " Thanks", " Thank you"])
    return text


# --- small talk, this system, capitals, colours, out of scope ---


def small_talk(rng, held_out):
    answer, *split = rng.choice(facts.SMALL_TALK)
    text = pick(rng, split, held_out)
    if rng.random() < 0.3:
        text = text.rstrip("?") + rng.choice(["!", ".", "?" if text.endswith("?") else "!"])
    return Item("small talk", dress(rng, text, wrap=False), answer, "The user is making small talk.")


def system(rng, held_out):
    answer, *split = rng.choice(facts.SYSTEM)
    return Item("system", dress(rng, pick(rng, split, held_out)), answer, "This is a question about Switchyard.")


def capital(rng, held_out):
    country = rng.choice(list(facts.CAPITALS))
    text = pick(rng, facts.CAPITAL_PHRASINGS, held_out).format(x=country)
    return Item(
        "capitals and colours",
        dress(rng, text),
        f"The capital of {country} is {facts.CAPITALS[country]}.",
        "The user asks for a capital.",
    )


def colour(rng, held_out):
    thing = rng.choice(list(facts.COLOURS))
    text = pick(rng, facts.COLOUR_PHRASINGS, held_out).format(x=thing)
    return Item(
        "capitals and colours",
        dress(rng, text),
        f"{thing[0].upper()}{thing[1:]} is {facts.COLOURS[thing]}.",
        "The user asks for a colour.",
    )


def capital_or_colour(rng, held_out):
    return (capital if rng.random() < 0.55 else colour)(rng, held_out)


def out_of_scope(rng, held_out):
    topic = pick(rng, facts.OUT_OF_SCOPE_TOPICS, held_out)
    if not held_out and rng.random() < 0.4:
        topic = invented_word(rng)
    text = pick(rng, facts.OUT_OF_SCOPE, held_out).format(x=topic, v=rng.choice(facts.OUT_OF_SCOPE_VERBS))
    return Item("out of scope", dress(rng, text), facts.OUT_OF_SCOPE_ANSWER, "This is outside what I know.")


# --- sums ---


def operands(rng, held_out, plus):
    """A two-digit pair of the right side of the split; a >= b for subtraction."""
    while True:
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        if not plus and a < b:
            a, b = b, a
        if is_held_out((a, b, plus)) == held_out:
            return a, b


def working(a, b, plus):
    """Column arithmetic in one line, ones first."""
    ones_a, ones_b, tens_a, tens_b = a % 10, b % 10, a // 10, b // 10
    if plus:
        ones, carry = ones_a + ones_b, ones_a + ones_b > 9
        tens = f"{tens_a} + {tens_b}{' + 1' * carry} = {tens_a + tens_b + carry}"
        return f"Ones: {ones_a} + {ones_b} = {ones}. Tens: {tens}."
    borrow = ones_a < ones_b
    top = ones_a + 10 * borrow
    tens = f"{tens_a} - {tens_b}{' - 1' * borrow} = {tens_a - tens_b - borrow}"
    return f"Ones: {top} - {ones_b} = {top - ones_b}. Tens: {tens}."


def sums(rng, held_out):
    plus = rng.random() < 0.5
    a, b = operands(rng, held_out, plus)
    text = rng.choice(facts.ADD if plus else facts.SUBTRACT).format(a=a, b=b)
    result = f"{a} + {b} = {a + b}" if plus else f"{a} - {b} = {a - b}"
    thought = f"I {'add' if plus else 'subtract'} column by column."
    return Item("sums", dress(rng, text), f"{working(a, b, plus)} So {result}", thought)


# --- spelling ---

TRAIN_WORDS = [w for w in facts.WORDS if not is_held_out(w)]
HELD_OUT_WORDS = [w for w in facts.WORDS if is_held_out(w)]
ONSETS = "b c d f g h j k l m n p r s t v w z bl br ch cl cr dr fl fr gr pl pr sh sl sp st th tr qu".split() + [""]
VOWELS = "a e i o u a e i o ea ee oo ou ai y".split()
CODAS = "n r l t s d m p k ck st nd ng rn ll x nt sh".split() + [""] * 6


def invented_word(rng):
    """A pseudo-word: syllables, random letters, or two real words cut and joined."""
    kind = rng.random()
    if kind < 0.4:
        word = "".join(
            rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.choice([1, 2, 2]))
        )
    elif kind < 0.5:
        word = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 6)))
    else:
        left, right = rng.choice(TRAIN_WORDS), rng.choice(TRAIN_WORDS)
        word = left[: rng.randint(1, len(left))] + right[rng.randint(0, len(right) - 1) :]
    word = word[:8]
    return word if 3 <= len(word) and word not in HELD_OUT_WORDS else invented_word(rng)


def spelling(rng, held_out):
    if held_out:
        word = rng.choice(HELD_OUT_WORDS)
    else:
        word = rng.choice(TRAIN_WORDS) if rng.random() < 0.3 else invented_word(rng)
    backwards = rng.random() < 0.5
    text = rng.choice(facts.REVERSE if backwards else facts.SPELL).format(w=word)
    answer = "-".join(reversed(word) if backwards else word)
    thought = "The user wants the letters" + (f" backwards. Forwards: {'-'.join(word)}" if backwards else " in order.")
    return Item("spelling", dress(rng, text, wrap=False), answer, thought)


# --- JSON ---

FIELD_STYLES = ["{k} {v}", "{k} {v}", "{k}: {v}", "{k} = {v}"]


def first_name(rng, held_out):
    if held_out:
        return rng.choice(facts.FIRST_NAMES[1])
    if rng.random() < 0.5:
        return rng.choice(facts.FIRST_NAMES[0])
    name = invented_word(rng)[:6].capitalize()
    return name if name not in facts.FIRST_NAMES[1] else first_name(rng, held_out)


def field_value(rng, key, held_out):
    if key == "name":
        return first_name(rng, held_out)
    if key in ("age", "count", "price"):
        return rng.randint(1, 99)
    return rng.choice(
        {
            "city": [c for c in facts.CAPITALS.values() if " " not in c],
            "country": list(facts.CAPITALS),
            "colour": facts.PLAIN_COLOURS,
            "animal": facts.ANIMALS,
            "active": [True, False],
        }[key]
    )


JSON_KEYS = ["name", "age", "city", "country", "colour", "animal", "count", "price", "active"]


def json_object(rng, held_out):
    """Keys and values on the right side of the split: a held-out name, or a held-out combination."""
    while True:
        keys = rng.sample(JSON_KEYS, rng.choice([1, 2, 2, 2, 3]))
        if rng.random() < 0.5 and "name" not in keys:
            keys[0] = "name"
        value = {k: field_value(rng, k, held_out) for k in keys}
        if is_held_out(sorted(value.items())) == held_out or (held_out and "name" in keys):
            return value


def json_reply(rng, held_out):
    value = json_object(rng, held_out)
    style = rng.choice(FIELD_STYLES)
    fields = [style.format(k=k, v=str(v).lower() if isinstance(v, bool) else v) for k, v in value.items()]
    joined = ", ".join(fields[:-1]) + (" and " if len(fields) > 1 else "") + fields[-1]
    text = dress(rng, rng.choice(facts.JSON_REQUESTS).format(f=joined), wrap=False)
    return Item("json", text, json.dumps(value), "The user wants a JSON object.", json_mode=rng.random() < 0.25)


# --- mixture ---

FAMILIES = {
    "small talk": small_talk,
    "system": system,
    "sums": sums,
    "spelling": spelling,
    "capitals and colours": capital_or_colour,
    "json": json_reply,
    "out of scope": out_of_scope,
}
WEIGHTS = {
    "small talk": 1.5,
    "system": 2.2,
    "sums": 2.0,
    "spelling": 4.0,
    "capitals and colours": 1.3,
    "json": 2.2,
    "out of scope": 0.8,
}


def sample(rng, held_out=False, weights=None):
    """One item of a family drawn by weight."""
    weights = weights or WEIGHTS
    return FAMILIES[rng.choices(list(weights), list(weights.values()))[0]](rng, held_out)


def item_texts(item):
    """All texts of an item, for vocabulary counting."""
    return [item.question, item.answer, item.thought]


def distinct(make, family, count, seed):
    """The evaluation set of one family: `count` cases of `make(rng)` with distinct questions, fewer if there are fewer."""
    rng, seen, cases = random.Random(f"{seed} {family}"), set(), []
    for _ in range(100 * count):
        case = make(rng)
        if case and case.item.question not in seen and len(cases) < count:
            seen.add(case.item.question)
            cases.append(case)
    return cases


def held_out_cases(family, count, seed=2024):
    """demo-flash's evaluation set of one family, reproducible."""
    return distinct(lambda rng: Case(family, FAMILIES[family](rng, True)), family, count, seed)


def plain_form(text):
    """A phrasing without case and final punctuation, to compare both sides of the split."""
    return text.lower().rstrip("?!. ")


def check_split():
    """No held-out phrasing is a training phrasing."""
    groups = [intent[1:] for intent in facts.SMALL_TALK + facts.SYSTEM]
    groups += [
        facts.CAPITAL_PHRASINGS,
        facts.COLOUR_PHRASINGS,
        facts.OUT_OF_SCOPE,
        facts.OUT_OF_SCOPE_TOPICS,
        facts.FIRST_NAMES,
    ]
    train = {plain_form(t) for group in groups for t in group[0]}
    overlap = train & {plain_form(t) for group in groups for t in group[1]}
    assert not overlap, overlap


check_split()
