"""The larger demo model as an agent: it thinks, chooses among tools by itself, and answers with their results."""

import json

import pytest

MODEL = "demo-pro"
ROUNDS_MAX = 4


def tool(name, parameter, description):
    parameters = {"type": "object", "properties": {parameter: {"type": "string"}}, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [
    tool("calculator", "expression", "Evaluate an arithmetic expression."),
    tool("get_weather", "city", "Get the current weather in a city."),
    tool("get_time", "city", "Get the current time in a city."),
]
RESULTS = {
    "calculator": {"48 * 7": "336"},
    "get_weather": {"Lima": '{"temperature": 21, "condition": "sunny"}'},
    "get_time": {"Oslo": "14:05"},
}


def converse(client, question, tools):
    """Asks until there is an answer, running the tools that the model calls; that answer, and what was called."""
    messages = [{"role": "user", "content": question}]
    called = []
    for _ in range(ROUNDS_MAX):
        asked = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 300}
        choice = client.chat.completions.create(**asked, tools=tools).choices[0]
        assert choice.message.reasoning_content
        if choice.finish_reason != "tool_calls":
            return choice, called
        messages.append(choice.message)
        for call in choice.message.tool_calls:
            [argument] = json.loads(call.function.arguments).values()
            called.append((call.function.name, argument))
            result = RESULTS[call.function.name][argument]
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    raise AssertionError(f"it never answers: {called}")


@pytest.mark.parametrize(
    "question, calls, said",
    [
        ("What is 48 * 7?", [("calculator", "48 * 7")], "336"),
        ("What is the weather in Lima?", [("get_weather", "Lima")], "21"),
        ("What time is it in Oslo?", [("get_time", "Oslo")], "14:05"),
        ("What is the capital of France?", [], "Paris"),
    ],
)
def test_it_chooses_the_tool_and_answers_with_its_result(client, question, calls, said):
    choice, called = converse(client, question, TOOLS)
    assert called == calls
    assert choice.finish_reason == "stop" and said in choice.message.content


def test_it_calls_two_tools_at_once(client):
    _, called = converse(client, "What is the weather in Lima and the time in Oslo?", TOOLS)
    assert sorted(called) == [("get_time", "Oslo"), ("get_weather", "Lima")]


def test_it_says_what_it_has_no_tool_for(client):
    choice, called = converse(client, "What time is it in Oslo?", TOOLS[:1])
    assert not called and choice.message.content


def test_a_thought_is_counted_and_can_be_switched_off(client):
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "What is 17 + 25?"}], "temperature": 0}
    thought = client.chat.completions.create(**asked, max_tokens=300)
    assert 0 < thought.usage.completion_tokens_details.reasoning_tokens < thought.usage.completion_tokens
    plain = client.chat.completions.create(**asked, max_tokens=300, extra_body={"thinking": {"type": "disabled"}})
    assert not getattr(plain.choices[0].message, "reasoning_content", None)
    assert plain.usage.completion_tokens < thought.usage.completion_tokens
    assert "42" in thought.choices[0].message.content and "42" in plain.choices[0].message.content
