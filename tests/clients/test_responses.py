"""The openai client's Responses against a cluster of two workers."""

import openai
import pytest

import raw

QUESTION = "What is the capital of France?"
ADD = {
    "type": "function",
    "name": "add",
    "description": "Adds two numbers.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    "strict": False,
}
NO_THINKING = {"effort": "none"}


def ask(client, server, **options):
    options = {"temperature": 0, "max_output_tokens": 24, "reasoning": NO_THINKING} | options
    options.setdefault("input", QUESTION)
    options.setdefault("model", server.model)
    return client.responses.create(**options)


def test_a_response_in_one_piece(client, server):
    response = ask(client, server, metadata={"a": "b"})
    assert response.id.startswith("resp_") and response.object == "response"
    assert response.status in ("completed", "incomplete")
    assert response.output_text
    assert response.metadata == {"a": "b"} and response.store is True
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_it_is_what_chat_completions_say(client, server):
    response = ask(client, server)
    chat = client.chat.completions.create(
        model=server.model,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=24,
        temperature=0,
        extra_body={"thinking": {"type": "disabled"}},
    )
    assert response.output_text == chat.choices[0].message.content
    assert response.usage.input_tokens == chat.usage.prompt_tokens


def test_a_stream_adds_up_to_the_same_text(client, server):
    whole = ask(client, server)
    events = list(ask(client, server, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-1].response.output_text == whole.output_text


def test_the_clients_own_helper_follows_a_stream(client, server):
    options = {"model": server.model, "input": QUESTION, "max_output_tokens": 400}
    with client.responses.stream(reasoning=NO_THINKING, temperature=0, **options) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text


def test_reasoning_comes_apart_and_goes_back(client, server):
    thinking = {"reasoning": {"effort": "high"}, "max_output_tokens": 200}
    response = ask(client, server, include=["reasoning.encrypted_content"], **thinking)
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.output[0].content[0].text
    assert 0 < response.usage.output_tokens_details.reasoning_tokens
    turns = [{"role": "user", "content": QUESTION}]
    turns += [item.model_dump(exclude_none=True) for item in response.output]
    turns += [{"role": "user", "content": "And of Spain?"}]
    sent = ask(client, server, input=turns, **thinking)
    named = ask(
        client, server, input="And of Spain?", previous_response_id=response.id, **thinking
    )
    assert sent.usage.input_tokens == named.usage.input_tokens > response.usage.input_tokens
    assert sent.output_text == named.output_text


def test_a_tool_is_called_and_its_result_goes_back(client, server):
    turns = [
        {"role": "user", "content": QUESTION},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 5}'},
        {"type": "function_call_output", "call_id": "c1", "output": "7"},
    ]
    assert ask(client, server, tools=[ADD], input=turns).output
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(client, server, tools=[ADD], input=turns[:-1])
    assert "c1" in refusal.value.message


def test_a_kept_response_is_fetched_listed_and_deleted(client, server):
    response = ask(client, server, instructions="Be brief.")
    assert client.responses.retrieve(response.id).output_text == response.output_text
    items = list(client.responses.input_items.list(response.id))
    assert [item.content[0].text for item in items] == [QUESTION]
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
    unwanted = ask(client, server, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unwanted.id)


def test_a_background_response_is_fetched_later(client, server):
    begun = ask(client, server, background=True)
    assert begun.status == "in_progress"

    def ended():
        response = client.responses.retrieve(begun.id)
        return response if response.status != "in_progress" else None

    response = raw.eventually(ended, seconds=60)
    assert response.status in ("completed", "incomplete")
    assert response.output_text == ask(client, server).output_text


def test_a_background_response_is_cancelled(client, server):
    begun = ask(
        client,
        server,
        background=True,
        max_output_tokens=3500,
        extra_body={"ignore_eos": True},
    )
    assert client.responses.cancel(begun.id).status == "cancelled"
    assert client.responses.retrieve(begun.id).status == "cancelled"
    in_flight = "switchyard_requests_in_flight"
    assert raw.eventually(lambda: raw.metric(server, in_flight) == 0)


def test_log_probabilities(client, server):
    response = ask(client, server, top_logprobs=2, max_output_tokens=4)
    entries = response.output[0].content[0].logprobs
    assert entries and all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in entries)


def test_errors(client, server):
    with pytest.raises(openai.NotFoundError) as refusal:
        ask(client, server, model="no-such-model")
    assert refusal.value.code == "model_not_found"
    for wrong in (
        {"tools": [{"type": "web_search"}]},
        {"max_output_tokens": 0},
        {"previous_response_id": "resp_0"},
        {"truncation": "auto"},
        {"background": True, "store": False},
    ):
        with pytest.raises(openai.BadRequestError) as refusal:
            ask(client, server, **wrong)
        assert refusal.value.param
    stranger = openai.OpenAI(base_url=server.base_url, api_key="sk-wrong-key", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        ask(stranger, server)


def test_counting_tells_what_a_response_will_cost(client, server):
    response = ask(client, server, instructions="Be brief.")
    count = client.responses.input_tokens.count(
        model=server.model, input=QUESTION, instructions="Be brief.", reasoning=NO_THINKING
    )
    assert count.input_tokens == response.usage.input_tokens
