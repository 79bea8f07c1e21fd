"""litellm, which many programs speak through, against a cluster of one worker."""

import json
import os

import pytest

# Prices come with the package; asking for newer ones would need the network.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm  # noqa: E402: it reads the environment when it is imported

QUESTION = {"role": "user", "content": "What is the capital of France?"}
# The model has no answer to this by heart, so that it draws a different one each time.
ODD = {"role": "user", "content": "zq xv"}
CITIES = ["Lima", "Oslo", "São Paulo"]
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": CITIES}, "days": {"type": "integer", "minimum": 0, "maximum": 14}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": WEATHER, "strict": True}}
# By name: a model of this size would not choose it, nor know when to stop calling.
FORCED = {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}, "parallel_tool_calls": False}


@pytest.fixture
def ask(server):
    """Asks with what every request has, and what this one has beside it."""

    def ask(**options):
        base = {"model": server.model, "messages": [QUESTION], "temperature": 0, "max_tokens": 24}
        base |= {"api_base": server.base_url, "api_key": server.key, "timeout": 120, "num_retries": 0}
        base |= {"extra_body": {"thinking": {"type": "disabled"}}}
        options = base | options
        return litellm.completion(**options | {"model": f"openai/{options['model']}"})

    return ask


def text(answer):
    return answer.choices[0].message.content


def check_weather(arguments):
    weather = json.loads(arguments)
    assert weather.keys() == {"city", "days"}
    assert weather["city"] in CITIES and 0 <= weather["days"] <= 14


def test_a_stream_adds_up_to_the_whole_answer(ask):
    whole = ask()
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == text(whole) != ""
    rebuilt = litellm.stream_chunk_builder(chunks, messages=[QUESTION])
    assert text(rebuilt) == streamed
    assert rebuilt.usage.completion_tokens == whole.usage.completion_tokens
    assert rebuilt.choices[0].finish_reason == whole.choices[0].finish_reason


def test_reasoning_comes_apart_from_the_answer(ask):
    message = ask(max_tokens=200, extra_body={"thinking": {"type": "enabled"}}).choices[0].message
    assert message.reasoning_content and message.content


def test_a_tool_is_called_and_its_result_answered(ask):
    called = ask(**FORCED, max_tokens=200).choices[0]
    assert called.finish_reason == "tool_calls"
    [call] = called.message.tool_calls
    assert call.function.name == "weather"
    check_weather(call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}
    answer = ask(tools=[TOOL], tool_choice="none", messages=[QUESTION, called.message.model_dump(), result])
    assert text(answer)
    assert answer.usage.prompt_tokens > ask().usage.prompt_tokens


def test_an_answer_keeps_to_a_json_schema(ask):
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER, "strict": True}}
    answer = ask(response_format=form, max_tokens=200, temperature=1, seed=5)
    assert answer.choices[0].finish_reason == "stop"
    check_weather(text(answer))


def test_log_probabilities_come_for_each_token(ask):
    answer = ask(logprobs=True, top_logprobs=2, max_tokens=4)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in entries)
    assert "".join(entry.token for entry in entries) == text(answer)


def test_two_choices_differ_and_a_seed_makes_both_repeatable(ask):
    first, second = (ask(messages=[ODD], n=2, temperature=1, seed=7) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1]
    assert texts[0] != texts[1]
    assert [choice.message.content for choice in second.choices] == texts


def test_a_stop_sequence_ends_the_answer_before_it(ask):
    whole = text(ask())
    stop = whole[len(whole) // 2 :][:3]
    answer = ask(stop=[stop])
    assert answer.choices[0].finish_reason == "stop"
    assert text(answer) == whole[: whole.index(stop)]


def test_a_wrong_key_is_refused_with_401(ask):
    with pytest.raises(litellm.AuthenticationError) as refusal:
        ask(api_key="sk-wrong-key")
    assert refusal.value.status_code == 401


def test_an_unknown_model_is_refused_with_404(ask):
    with pytest.raises(litellm.NotFoundError) as refusal:
        ask(model="no-such-model")
    assert refusal.value.status_code == 404 and "no-such-model" in str(refusal.value)


@pytest.mark.parametrize("field", [{"temperature": 3}, {"extra_body": {"audio": {"voice": "alloy"}}}], ids=json.dumps)
def test_a_bad_field_is_refused_with_400_and_its_name(ask, field):
    with pytest.raises(litellm.BadRequestError) as refusal:
        ask(**field)
    assert refusal.value.status_code == 400
    name = next(iter(field.get("extra_body", field)))
    assert name in str(refusal.value)


def test_a_prompt_beyond_the_context_is_told_apart(ask):
    """Programs cut the conversation and try again when they see this class."""
    with pytest.raises(litellm.ContextWindowExceededError):
        ask(messages=[{"role": "user", "content": "one two three four " * 5_000}])
