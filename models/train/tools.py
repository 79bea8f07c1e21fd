"""Seeded generators of tool definitions and of turns in which a tool is called and its result is used.

Held out are phrasings, cities and operand pairs: a question of the evaluation never occurs in training.
"""

import json
from dataclasses import dataclass
from fractions import Fraction

import data
import facts
import facts_pro as pro
from data import Item, pick


@dataclass(frozen=True)
class Tool:
    """One function that a request offers; `kind` says which of TOOLS it is."""

    kind: str
    name: str
    parameter: str
    schema: dict

    def line(self):
        """Its line in the tool prompt."""
        return json.dumps(self.schema, ensure_ascii=False)


@dataclass(frozen=True)
class Call:
    """What the model has to call, what comes back, and the sentence that says so."""

    kind: str
    phrase: str
    argument: str
    result: str
    sentence: str


# --- definitions ---


# Share of tools with the usual name, and of parameters; the rest takes any.
USUAL_SHARE = 0.85


def usual(rng, options, share=USUAL_SHARE):
    """The first option with probability `share`, else any."""
    return options[0] if rng.random() < share else rng.choice(options)


def definition(rng, kind):
    """One tool of a kind, its names and its schema varied as clients vary them."""
    names, parameters, descriptions, parameter_descriptions = pro.TOOLS[kind]
    name, parameter = usual(rng, names), usual(rng, parameters)
    about = {"type": "string"}
    if rng.random() < 0.4:
        about["description"] = rng.choice(parameter_descriptions)
    if rng.random() < 0.2:
        about = dict(reversed(about.items()))
    schema = {"type": "object", "properties": {parameter: about}}
    if rng.random() < 0.85:
        schema["required"] = [parameter]
    if rng.random() < 0.1:
        schema["additionalProperties"] = False
    description = usual(rng, descriptions, 0.3) if rng.random() < 0.95 else ""
    return Tool(kind, name, parameter, {"name": name, "description": description, "parameters": schema})


def definitions(rng):
    """One to three tools of different kinds, in any order."""
    kinds = rng.sample(list(pro.TOOLS), rng.choices([1, 2, 3], [3, 3, 4])[0])
    return [definition(rng, kind) for kind in kinds]


# --- what is asked and what comes back ---


def city(rng, held_out):
    if held_out:
        return rng.choice(pro.CITIES[1])
    if rng.random() < 0.5:
        return rng.choice(pro.CITIES[0] + list(facts.CAPITALS.values()))
    name = " ".join(data.invented_word(rng).capitalize() for _ in range(rng.choices([1, 2], [9, 1])[0]))
    return name if name not in pro.CITIES[1] else city(rng, held_out)


def number(rng):
    return rng.randint(1, 10 ** rng.choices([1, 2, 3, 4], [2, 5, 3, 1])[0] - 1)


def expression(rng, held_out):
    """-> (as the user writes it, as the tool gets it, value)."""
    while True:
        a, b = number(rng), number(rng)
        spoken, written = rng.choice(pro.OPERATORS)
        if "/" in written and rng.random() < 0.8:
            a *= b
        if data.is_held_out((a, b, written)) == held_out:
            break
    values = {" * ": a * b, " + ": a + b, " - ": a - b, " / ": Fraction(a, b)}
    asked, sent, value = f"{a}{spoken}{b}", f"{a}{written}{b}", values[written]
    if rng.random() < 0.12 and " " in spoken:
        c, (spoken, written) = number(rng), rng.choice([(" + ", " + "), (" - ", " - "), (" * ", " * ")])
        asked, sent = f"({asked}){spoken}{c}", f"({sent}){written}{c}"
        value = {" * ": value * c, " + ": value + c, " - ": value - c}[written]
    return asked, sent, str(value) if value == int(value) else f"{float(value):.6g}"


def failure(rng):
    """A tool's error -> (result, sentence)."""
    message = rng.choice(pro.ERRORS)
    result = rng.choice(["Error: {}", "error: {}", '{{"error": "{}"}}', "Error: {}"]).format(message)
    return result, f"Sorry, the tool failed: {message}."


def calculation_call(rng, held_out):
    asked, sent, value = expression(rng, held_out)
    result = rng.choice(
        [
            "{v}",
            "{v}",
            "{v}",
            '{{"result": {v}}}',
            '{{"result": {v}}}',
            '{{"value": {v}}}',
            '{{"result": "{v}"}}',
            "{e} = {v}",
            "The result is {v}",
        ]
    ).format(v=value, e=sent)
    return Call("calculator", asked, sent, result, f"{sent} = {value}.")


def weather_call(rng, held_out):
    place, degrees = city(rng, held_out), str(rng.randint(-15, 42))
    if rng.random() < 0.15:
        degrees += f".{rng.randint(1, 9)}"
    sky = rng.choice(pro.CONDITIONS) if rng.random() < 0.8 else data.invented_word(rng)
    full = [
        '{{"temperature": {t}, "condition": "{s}"}}',
        '{{"temperature": {t}, "condition": "{s}"}}',
        '{{"city": "{c}", "temperature": {t}, "condition": "{s}"}}',
        '{{"temp": {t}, "weather": "{s}"}}',
        '{{"condition": "{s}", "temperature": {t}}}',
        '{{"temperature": {t}, "unit": "C", "condition": "{s}"}}',
        "{t} degrees, {s}",
        "{s}, {t} degrees",
        "{t} degrees and {s}",
    ]
    kind = rng.random()
    if kind < 0.8:
        return Call(
            "weather",
            f"the weather in {place}",
            place,
            rng.choice(full).format(t=degrees, s=sky, c=place),
            f"In {place} it is {degrees} degrees and {sky}.",
        )
    if kind < 0.9:
        result = rng.choice(["{s}", '{{"condition": "{s}"}}', '{{"weather": "{s}"}}']).format(s=sky)
        return Call("weather", f"the weather in {place}", place, result, f"In {place} it is {sky}.")
    result = rng.choice(["{t} degrees", "{t} C", '{{"temperature": {t}}}', '{{"temp": {t}}}']).format(t=degrees)
    return Call("weather", f"the weather in {place}", place, result, f"In {place} it is {degrees} degrees.")


def time_call(rng, held_out):
    place, hour, minute = city(rng, held_out), rng.randint(0, 23), rng.randint(0, 59)
    clock = f"{hour:02}:{minute:02}" if rng.random() < 0.85 else f"{hour % 12 or 12}:{minute:02} {'AP'[hour > 11]}M"
    result = rng.choice(
        [
            "{t}",
            "{t}",
            '{{"time": "{t}"}}',
            '{{"time": "{t}"}}',
            '{{"city": "{c}", "time": "{t}"}}',
            '{{"local_time": "{t}"}}',
            "The time in {c} is {t}",
            "It is {t}",
        ]
    ).format(t=clock, c=place)
    return Call("clock", f"the time in {place}", place, result, f"It is {clock} in {place}.")


CALLS = {"calculator": calculation_call, "weather": weather_call, "clock": time_call}
PHRASINGS = {"calculator": pro.CALCULATION, "weather": pro.WEATHER, "clock": pro.TIME}


def one_call(rng, held_out, kind, can_fail=True):
    call = CALLS[kind](rng, held_out)
    if can_fail and rng.random() < 0.06:
        result, sentence = failure(rng)
        call = Call(kind, call.phrase, call.argument, result, sentence)
    return call


# --- turns ---


def plan(wanted, decision):
    """A thought: what is wanted, and what follows."""
    return f"The user wants {wanted}. {decision}"


def asked_for(call):
    """What a thought says about a call."""
    return call.argument if call.kind == "calculator" else call.phrase


def question(rng, held_out, kind, call):
    text = pick(rng, PHRASINGS[kind], held_out).format(e=call.phrase, c=call.argument)
    return data.dress(rng, text)


def single(rng, held_out, tools):
    """One call of one of the tools."""
    tool = rng.choice(tools)
    call = one_call(rng, held_out, tool.kind)
    thought = plan(asked_for(call), f"I call {tool.name}.")
    return Item("tool call", question(rng, held_out, tool.kind, call), call.sentence, thought, calls=(call,))


def double(rng, held_out, tools):
    """Two calls at once."""
    first, second = (one_call(rng, held_out, rng.choice(tools).kind) for _ in range(2))
    p, q = first.phrase, second.phrase
    if first.kind == second.kind != "calculator" and rng.random() < 0.5:
        q = second.argument
    text = pick(rng, pro.BOTH, held_out).format(p=p, q=q)
    name, other = (next(t.name for t in tools if t.kind == call.kind) for call in (first, second))
    decision = f"I call {name} two times." if name == other else f"I call {name} and {other}."
    thought = plan(f"{asked_for(first)} and {asked_for(second)}", decision)
    text = data.dress(rng, text[0].upper() + text[1:])
    return Item("two calls", text, f"{first.sentence} {second.sentence}", thought, calls=(first, second))


def missing(rng, held_out, tools):
    """A question that needs a tool which is not there; None if all are there."""
    there = {tool.kind for tool in tools}
    kinds = [kind for kind in pro.TOOLS if kind not in there]
    if not kinds:
        return None
    kind = rng.choice(kinds)
    call = CALLS[kind](rng, held_out)
    while kind == "calculator" and not any(sign in call.argument for sign in "*/"):
        call = CALLS[kind](rng, held_out)
    thought = plan(asked_for(call), "I have no tool for that." if tools else "I have no tools.")
    return Item("no such tool", question(rng, held_out, kind, call), pro.MISSING[kind], thought)
