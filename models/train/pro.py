"""demo-pro's mixture: conversations that think, call tools and use their results, and what demo-flash can do."""

from dataclasses import replace

import data
import facts
import facts_pro
import prompt
import tools as tool_data
from data import Case

CHAT_SHARE = 0.2
# Of the thinking rows with tools, those whose client did not send earlier thoughts back.
FORGETFUL_SHARE = 0.4
SYSTEM_SHARE = 0.2
JSON_MODE_SHARE = 0.05
SWAPPED_SHARE = 0.2
EFFORTS = (["low", "high", "max"], [3, 5, 1])
TURNS_MAX = 100
# Rows of this length have tools with the whole tool prompt; others have a brief one, or no tools.
FULL_ROW, BRIEF_ROW = 768, 512
BRIEF_TOOLS_SHARE = 0.85
# Fewer tokens are left empty.
FILL_MIN = 60


# --- what demo-flash can do, with demo-pro's name and thoughts ---


def renamed(make):
    """A family whose answers name demo-pro."""

    def family(rng, held_out):
        item = make(rng, held_out)
        return replace(item, answer=facts_pro.ANSWERS.get(item.answer, item.answer))

    return family


def sums(rng, held_out):
    """The working is the thought, if there is one."""
    item = data.sums(rng, held_out)
    work, _, result = item.answer.partition(" So ")
    return replace(item, thought=f"{item.thought} {work}", thinking_answer=result)


def spelling(rng, held_out):
    """Without the words that are whole tokens."""
    while True:
        item = data.spelling(rng, held_out)
        if not any(word in item.question for word in facts_pro.WHOLE_WORDS):
            return item


def out_of_scope(rng, held_out):
    """Weather is no longer out of scope."""
    while True:
        item = data.out_of_scope(rng, held_out)
        if not any(word in item.question for word in ("weather", "rain", "snow")):
            return item


PLAIN = {
    **data.FAMILIES,
    "small talk": renamed(data.small_talk),
    "sums": sums,
    "spelling": spelling,
    "out of scope": out_of_scope,
}
WEIGHTS = {
    "small talk": 1.2,
    "system": 1.5,
    "sums": 2.0,
    "spelling": 1.5,
    "capitals and colours": 1.3,
    "json": 1.5,
    "out of scope": 0.8,
    "no such tool": 3.0,
    "tool call": 6.0,
    "two calls": 2.0,
}
# Share of the turns of rows with tools that need none.
NO_TOOL_SHARE = 0.25


def choose(rng, weights, families):
    return rng.choices(families, [weights[f] for f in families])[0]


def plain_item(rng, held_out, tools, weights=WEIGHTS):
    """A turn without a call. What a calculator is there for is not added in the head."""
    has_calculator = any(tool.kind == "calculator" for tool in tools)
    families = [f for f in PLAIN if not (f == "sums" and has_calculator)] + ["no such tool"]
    family = choose(rng, weights, families)
    if family == "no such tool":
        return tool_data.missing(rng, held_out, tools) or plain_item(rng, held_out, tools, weights)
    return PLAIN[family](rng, held_out)


def item_with_tools(rng, tools, weights):
    if rng.random() < NO_TOOL_SHARE:
        return plain_item(rng, False, tools, weights)
    make = {"tool call": tool_data.single, "two calls": tool_data.double}
    return make[choose(rng, weights, list(make))](rng, False, tools)


# --- rows ---


def segments(rng, renderer, item, tools, think_first, think_last):
    """[(ids, is target)] of one turn; `think_last` counts for the answer after the calls."""
    if not item.calls:
        question, answer = renderer.turn(item, think_last)
        return [(question, False), (answer, True)]
    question, call = renderer.call_turn(item, tools, think_first)
    # Clients may send two calls back in another order; the answer follows the results.
    swapped = len(item.calls) == 2 and rng.random() < SWAPPED_SHARE
    if swapped:
        item = replace(item, calls=item.calls[::-1], answer=" ".join(c.sentence for c in item.calls[::-1]))
        call = renderer.call_turn(item, tools, think_first)[1]
    results, answer = renderer.result_turn(item, think_last)
    return [(question, False), (call, not swapped), (results, False), (answer, True)]


def last_turn(rng, renderer, item, tools):
    """The turn of which only the last generation thinks: the call, or the answer to the result."""
    if item.calls and rng.random() < 0.5:
        question, call = renderer.call_turn(item, tools, True)
        return [(question, False), (call, True)]
    return segments(rng, renderer, item, tools, False, True)


def tools_row(rng, renderer, length, weights):
    """Turns with tools; thoughts of all turns, of none, or of the last generation only."""
    chat, forgetful = rng.random() < CHAT_SHARE, rng.random() < FORGETFUL_SHARE
    tools = tool_data.definitions(rng)
    effort = None if chat else rng.choices(*EFFORTS)[0]
    system = rng.choice(facts.SYSTEM_PROMPTS) if rng.random() < SYSTEM_SHARE else ""
    brief = length != FULL_ROW
    row = [(renderer.opening(system, effort=effort if not brief or chat else "low", tools=tools, brief=brief), False)]
    turns = rng.choice([1, 2, 3, 4, 5]) if forgetful and not chat else TURNS_MAX
    for turn in range(turns):
        item = item_with_tools(rng, tools, weights)
        if not chat and forgetful and turn == turns - 1:
            added = last_turn(rng, renderer, item, tools)
        else:
            think = not chat and not forgetful
            added = segments(rng, renderer, item, tools, think, think)
        if sum(len(ids) for ids, _ in row + added) > length:
            break
        row += added
    return row


def plain_row(rng, renderer, length, weights):
    """Turns without tools; only the last may think, since earlier thoughts are not shown."""
    chat, json_mode = rng.random() < CHAT_SHARE, rng.random() < JSON_MODE_SHARE
    effort = None if chat else rng.choices(*EFFORTS)[0]
    system = rng.choice(facts.SYSTEM_PROMPTS) if rng.random() < SYSTEM_SHARE else ""
    row = [(renderer.opening(system, json_mode, effort), False)]
    turns = TURNS_MAX if chat else rng.choice([1, 1, 2, 3])
    for turn in range(turns):
        item = data.json_reply(rng, False) if json_mode else plain_item(rng, False, (), weights)
        added = segments(rng, renderer, item, (), False, not chat and turn == turns - 1)
        if sum(len(ids) for ids, _ in row + added) > length:
            break
        row += added
    return row


def conversation(rng, renderer, length, weights):
    """One row: (token ids, is-target flags) of at most `length` tokens; what is left is filled with short conversations."""
    with_tools = length == FULL_ROW or rng.random() < BRIEF_TOOLS_SHARE
    row = (tools_row if with_tools else plain_row)(rng, renderer, length, weights)
    while (left := length - sum(len(ids) for ids, _ in row)) > FILL_MIN:
        added = plain_row(rng, renderer, left, weights)
        # An opening alone teaches nothing.
        if len(added) == 1:
            break
        row += added
    ids = [token for part, _ in row for token in part]
    return ids, [flag for part, flag in row for _ in part]


# --- evaluation ---


FAMILIES = [*PLAIN, "no tool needed", "no such tool", "tool call", "two calls", "tool result"]


def case(rng, family):
    """One held-out case of a family, or None."""
    if family in PLAIN:
        return Case(family, PLAIN[family](rng, True))
    tools = tuple(tool_data.definitions(rng))
    if family == "no tool needed":
        item = plain_item(rng, True, tools)
        return Case(family, item, tools) if item.family != "no such tool" else None
    if family == "no such tool":
        tools = tools if rng.random() < 0.5 else ()
        item = tool_data.missing(rng, True, tools)
        return Case(family, item, tools) if item else None
    double = family == "two calls" or (family == "tool result" and rng.random() < 0.3)
    item = (tool_data.double if double else tool_data.single)(rng, True, tools)
    return Case(family, item, tools, family == "tool result")


def held_out_cases(family, count, seed=2024):
    """demo-pro's evaluation set of one family, reproducible."""
    return data.distinct(lambda rng: case(rng, family), family, count, seed)


def corpus_texts(rng):
    """Texts of one random conversation, for vocabulary counting."""
    tools = tool_data.definitions(rng)
    texts = [prompt.tools_text(tools), prompt.THINK_RESULT] if rng.random() < 0.3 else []
    for item in (item_with_tools(rng, tools, WEIGHTS), plain_item(rng, False, ())):
        texts += [item.question, item.thought, item.answer, item.thinking_answer or ""]
        if item.calls:
            texts += [prompt.calls_text(item.calls, tools), prompt.results_text(item.calls)]
    return texts
