"""Answers that must have a form, whatever the model would say: sampled hot, after thinking, in tool calls."""

import json
import pathlib

import jsonschema
import pytest

SCHEMAS = json.loads((pathlib.Path(__file__).parents[1] / "structured/schemas.json").read_text("utf-8"))
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Lima", "Oslo", "São Paulo"]}, "unit": {"type": "string", "enum": ["C", "F"]}, "days": {"type": "integer", "minimum": 0, "maximum": 14}},
    "required": ["city", "unit", "days"],
    "additionalProperties": False,
}


def ask(client, server, think=False, **options):
    body = {"thinking": {"type": "enabled" if think else "disabled"}}
    messages = [{"role": "user", "content": "Give me JSON with name Nora and age 31"}]
    options = {"temperature": 1, "max_tokens": 1500, "extra_body": body} | options
    return client.chat.completions.create(model=server.model, messages=messages, **options)


@pytest.mark.parametrize("entry", SCHEMAS, ids=[entry["name"] for entry in SCHEMAS])
def test_an_answer_validates(client, server, entry):
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": entry["schema"]}}
    choice = ask(client, server, response_format=form, seed=5).choices[0]
    assert choice.finish_reason == "stop", choice.message.content
    jsonschema.validate(json.loads(choice.message.content), entry["schema"], jsonschema.Draft202012Validator)


def test_the_form_holds_after_thinking(client, server):
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": WEATHER}}
    answer = ask(client, server, think=True, response_format=form, seed=3)
    message = answer.choices[0].message
    assert message.reasoning_content
    jsonschema.validate(json.loads(message.content), WEATHER)


@pytest.mark.parametrize("think", [False, True])
def test_a_forced_call_of_a_strict_tool_validates(client, server, think):
    function = {"name": "weather", "parameters": WEATHER, "strict": True}
    options = {"tools": [{"type": "function", "function": function}], "tool_choice": "required", "parallel_tool_calls": False}
    for seed in range(5):
        choice = ask(client, server, think=think, seed=seed, **options).choices[0]
        assert choice.finish_reason == "tool_calls"
        [call] = choice.message.tool_calls
        assert call.function.name == "weather"
        jsonschema.validate(json.loads(call.function.arguments), WEATHER)


def test_constrained_choices_are_the_same_every_time(client, server):
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": WEATHER}}
    texts = [
        [choice.message.content for choice in ask(client, server, response_format=form, seed=8, n=3).choices]
        for _ in range(2)
    ]
    assert texts[0] == texts[1]
