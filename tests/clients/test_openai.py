"""The openai client against a cluster of two workers."""

import json
from typing import Annotated, Literal

import openai
import pydantic
import pytest

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
# The model has no answer to this by heart, so that it draws a different one each time.
ODD = [{"role": "user", "content": "zq xv"}]


class Weather(pydantic.BaseModel):
    """What the weather tool is told, and what an answer in JSON must say."""

    model_config = pydantic.ConfigDict(extra="forbid")

    city: Literal["Lima", "Oslo", "São Paulo"]
    days: Annotated[int, pydantic.Field(ge=0, le=14)]


def ask(client, server, **options):
    options = {"temperature": 0, "max_tokens": 24} | options
    options.setdefault("extra_body", {"thinking": {"type": "disabled"}})
    return client.chat.completions.create(model=server.model, **{"messages": QUESTION} | options)


def test_models_are_listed(client, server):
    assert server.model in [model.id for model in client.models.list()]


def test_an_answer_in_one_piece(client, server):
    answer = ask(client, server)
    choice = answer.choices[0]
    assert answer.object == "chat.completion"
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 24
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_streamed_answer_is_the_same_text(client, server):
    whole = ask(client, server).choices[0]
    chunks = list(ask(client, server, stream=True))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.message.content
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
    assert reasons == [whole.finish_reason]
    assert all(chunk.choices for chunk in chunks), "the chunk of include_usage, though not asked for"


def test_include_usage_adds_one_last_chunk(client, server):
    usage = ask(client, server).usage
    chunks = list(ask(client, server, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == usage.prompt_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_reasoning_comes_apart_from_the_answer(client, server):
    options = {"max_tokens": 200, "extra_body": {"thinking": {"type": "enabled"}}}
    whole = ask(client, server, **options).choices[0].message
    assert whole.content and whole.reasoning_content
    deltas = [c.choices[0].delta for c in ask(client, server, stream=True, **options) if c.choices]
    reasoning = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert reasoning == whole.reasoning_content
    assert "".join(delta.content or "" for delta in deltas) == whole.content


def test_max_tokens_ends_with_length(client, server):
    answer = ask(client, server, max_tokens=1)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 1


def test_a_seed_makes_sampling_repeatable(client, server):
    options = {"temperature": 1.0, "seed": 7, "max_tokens": 16}
    first, second = (ask(client, server, **options) for _ in range(2))
    assert first.choices[0].message.content == second.choices[0].message.content


def test_log_probabilities(client, server):
    answer = ask(client, server, logprobs=True, top_logprobs=3, max_tokens=4)
    entries = answer.choices[0].logprobs.content
    assert 0 < len(entries) <= 4
    for entry in entries:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 3
        # Greedy: the token sampled is the most likely one.
        assert entry.top_logprobs[0].token == entry.token


def test_a_stop_string_ends_the_answer_before_it(client, server):
    text = ask(client, server).choices[0].message.content
    stop = text[len(text) // 2 :][:3]
    answer = ask(client, server, stop=[stop])
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == text[: text.index(stop)]


def test_two_choices_differ_and_a_seed_makes_both_repeatable(client, server):
    options = {"messages": ODD, "temperature": 1, "seed": 7, "n": 2, "max_tokens": 16}
    first, second = (ask(client, server, **options) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1]
    assert texts[0] != texts[1]
    assert [choice.message.content for choice in second.choices] == texts


def test_a_tool_is_called_and_its_result_answered(client, server):
    tool = openai.pydantic_function_tool(Weather, name="weather")
    # By name: a model of this size would not choose it, nor know when to stop calling.
    choice = {"type": "function", "function": {"name": "weather"}}
    forced = {"tool_choice": choice, "parallel_tool_calls": False}
    called = ask(client, server, tools=[tool], max_tokens=200, **forced).choices[0]
    assert called.finish_reason == "tool_calls"
    [call] = called.message.tool_calls
    assert call.function.name == "weather"
    Weather.model_validate_json(call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}
    answer = ask(client, server, tools=[tool], tool_choice="none", messages=[*QUESTION, called.message, result])
    assert answer.choices[0].message.content
    assert answer.usage.prompt_tokens > ask(client, server).usage.prompt_tokens


def test_a_streamed_tool_call_adds_up_to_the_same_arguments(client, server):
    tool = openai.pydantic_function_tool(Weather, name="weather")
    options = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 200}
    [whole] = ask(client, server, **options).choices[0].message.tool_calls
    deltas = [
        call
        for chunk in ask(client, server, stream=True, **options)
        for choice in chunk.choices
        for call in choice.delta.tool_calls or []
    ]
    assert {delta.index for delta in deltas} == {0}
    assert [delta.function.name for delta in deltas if delta.function.name] == ["weather"]
    assert "".join(delta.function.arguments or "" for delta in deltas) == whole.function.arguments


def test_the_clients_own_parser_reads_an_answer_in_json(client, server):
    answer = client.chat.completions.parse(
        model=server.model,
        messages=QUESTION,
        response_format=Weather,
        max_tokens=200,
        seed=5,
        extra_body={"thinking": {"type": "disabled"}},
    )
    assert isinstance(answer.choices[0].message.parsed, Weather)


def test_a_wrong_key(server):
    stranger = openai.OpenAI(base_url=server.base_url, api_key="sk-wrong-key", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as refusal:
        stranger.models.list()
    assert refusal.value.status_code == 401
    assert refusal.value.code == "invalid_api_key"


def test_an_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as refusal:
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    assert refusal.value.code == "model_not_found"
    assert "no-such-model" in refusal.value.message


@pytest.mark.parametrize(
    "field",
    [{"temperature": 3}, {"max_tokens": -1}, {"extra_body": {"audio": {"voice": "alloy"}}}],
    ids=json.dumps,
)
def test_a_bad_field_is_named(client, server, field):
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(client, server, **field)
    assert refusal.value.param == next(iter(field.get("extra_body", field)))
    assert refusal.value.request_id
