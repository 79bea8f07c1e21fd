"""The anthropic client against a cluster of two workers."""

import json

import anthropic
import jsonschema
import pytest

import raw

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ADD = {
    "name": "add",
    "description": "Adds two numbers.",
    "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}},
}
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Lima", "Oslo", "São Paulo"]}, "days": {"type": "integer", "minimum": 0, "maximum": 14}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
NO_THINKING = {"type": "disabled"}
THINKING = {"type": "enabled", "budget_tokens": 1024}


@pytest.fixture(scope="module")
def claude(server):
    return anthropic.Anthropic(
        base_url=server.root_url, api_key=server.key, max_retries=0, timeout=60
    )


def options(server, **changes):
    asked = {"model": server.model, "max_tokens": 24, "messages": QUESTION, "thinking": NO_THINKING}
    # The client no longer has an argument for the temperature.
    body = {"temperature": 0} | changes.pop("extra_body", {})
    return asked | changes | {"extra_body": body}


def test_a_message_in_one_piece(claude, server):
    message = claude.messages.create(**options(server))
    assert message.type == "message" and message.role == "assistant"
    assert message.id.startswith("msg_")
    assert [block.type for block in message.content] == ["text"]
    assert message.content[0].text
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert message.usage.input_tokens > 0 and 0 < message.usage.output_tokens <= 24
    assert message._request_id


def test_it_is_what_chat_completions_say(claude, client, server):
    message = claude.messages.create(**options(server))
    chat = client.chat.completions.create(
        model=server.model,
        messages=QUESTION,
        max_tokens=24,
        temperature=0,
        extra_body={"thinking": NO_THINKING},
    )
    assert message.content[0].text == chat.choices[0].message.content
    assert message.usage.input_tokens == chat.usage.prompt_tokens
    assert message.usage.output_tokens == chat.usage.completion_tokens


def test_a_stream_adds_up_to_the_same_message(claude, server):
    whole = claude.messages.create(**options(server))
    with claude.messages.stream(**options(server)) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == message.content[0].text == whole.content[0].text
    assert message.stop_reason == whole.stop_reason
    assert message.usage.output_tokens == whole.usage.output_tokens


def test_the_events_of_a_stream(claude, server):
    names = [event.type for event in claude.messages.create(**options(server, stream=True))]
    assert names[:2] == ["message_start", "content_block_start"]
    assert set(names[2:-3]) <= {"content_block_delta", "ping"}
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_reasoning_is_signed_and_goes_back(claude, server):
    asked = options(server, thinking=THINKING, max_tokens=200)
    message = claude.messages.create(**asked)
    assert [block.type for block in message.content] == ["thinking", "text"]
    thinking = message.content[0]
    assert thinking.thinking and thinking.signature
    with claude.messages.stream(**asked) as stream:
        assert stream.get_final_message().content[0].thinking == thinking.thinking
    turns = QUESTION + [
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": "And of Spain?"},
    ]
    again = claude.messages.create(**asked | {"messages": turns})
    assert again.content[-1].type == "text"


def test_a_tool_is_called_and_its_result_goes_back(claude, server):
    turns = QUESTION + [
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 5}},
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "7"}],
        },
    ]
    message = claude.messages.create(**options(server, tools=[ADD], messages=turns))
    assert message.content
    # Without the result the call is open.
    with pytest.raises(anthropic.BadRequestError) as refusal:
        claude.messages.create(**options(server, tools=[ADD], messages=turns[:-1]))
    assert "tool_use" in refusal.value.message


def test_a_forced_tool_leaves_no_markup(claude, server):
    for choice in ({"type": "any"}, {"type": "tool", "name": "add"}):
        message = claude.messages.create(**options(server, tools=[ADD], tool_choice=choice))
        text = "".join(block.text for block in message.content if block.type == "text")
        assert "DSML" not in text


def test_a_tool_is_called_by_name_and_its_result_answered(claude, server):
    weather = {"name": "weather", "input_schema": WEATHER, "strict": True}
    choice = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    asked = options(server, tools=[weather], tool_choice=choice, max_tokens=200)
    message = claude.messages.create(**asked)
    assert message.stop_reason == "tool_use"
    [call] = [block for block in message.content if block.type == "tool_use"]
    assert call.name == "weather"
    jsonschema.validate(call.input, WEATHER)
    with claude.messages.stream(**asked) as stream:
        assert stream.get_final_message().content[-1].input == call.input
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "21 degrees"}
    turns = QUESTION + [
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result]},
    ]
    answer = claude.messages.create(
        **options(server, tools=[weather], tool_choice={"type": "none"}, messages=turns)
    )
    assert answer.content[0].text


def test_an_answer_keeps_to_a_json_schema(claude, server):
    form = {"format": {"type": "json_schema", "schema": WEATHER}}
    message = claude.messages.create(**options(server, output_config=form, max_tokens=200))
    assert message.stop_reason == "end_turn"
    jsonschema.validate(json.loads(message.content[0].text), WEATHER)


def test_system_prompts_and_prefilled_answers(claude, server):
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    plain = claude.messages.create(**options(server))
    guided = claude.messages.create(**options(server, system=system))
    assert guided.usage.input_tokens > plain.usage.input_tokens
    prefilled = QUESTION + [{"role": "assistant", "content": "The capital of France is"}]
    assert claude.messages.create(**options(server, messages=prefilled)).content


def test_a_stop_sequence_is_named(claude, server):
    text = claude.messages.create(**options(server)).content[0].text
    stop = text[len(text) // 2 :][:3]
    message = claude.messages.create(**options(server, stop_sequences=[stop]))
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert message.content[0].text == text[: text.index(stop)]


def test_counting_tells_what_a_message_will_cost(claude, server):
    asked = {"model": server.model, "messages": QUESTION, "system": "Be brief.", "tools": [ADD]}
    count = claude.messages.count_tokens(thinking=NO_THINKING, **asked)
    message = claude.messages.create(**options(server, **asked))
    assert count.input_tokens == message.usage.input_tokens


def test_a_wrong_key(server):
    stranger = anthropic.Anthropic(base_url=server.root_url, api_key="sk-wrong", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError) as refusal:
        stranger.messages.create(**options(server))
    assert refusal.value.body["error"]["type"] == "authentication_error"
    assert refusal.value.body["request_id"] == refusal.value.request_id


def test_an_unknown_model(claude, server):
    with pytest.raises(anthropic.NotFoundError) as refusal:
        claude.messages.create(**options(server, model="no-such-model"))
    assert refusal.value.body["error"]["type"] == "not_found_error"
    assert "no-such-model" in refusal.value.message


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": []},
        {"max_tokens": 0},
        {"extra_body": {"temperature": 3}},
        {"tools": [{"type": "bash_20250124", "name": "bash"}]},
        {"extra_body": {"container": "c"}},
        {"messages": QUESTION + [{"role": "user", "content": "x " * 60_000}]},
    ],
    ids=["no messages", "no tokens", "too hot", "server tool", "unknown field", "too long"],
)
def test_bad_requests(claude, server, changes):
    with pytest.raises(anthropic.BadRequestError) as refusal:
        claude.messages.create(**options(server, **changes))
    assert refusal.value.body["error"]["type"] == "invalid_request_error"


def test_an_unknown_path_has_the_same_form(server):
    status, body = raw.post(server, b"{}", path="/v1/messages/batches")
    assert (status, body["error"]["type"]) == (404, "not_found_error")
