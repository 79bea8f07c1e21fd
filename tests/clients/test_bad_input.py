"""Requests that must be refused, and a cluster that goes on."""

import json

import pytest

import raw


@pytest.fixture(autouse=True)
def goes_on(server):
    """After whatever was sent, the next request is answered."""
    yield
    status, body = raw.chat(server, max_tokens=2, temperature=0)
    assert status == 200, body
    assert server.process.poll() is None


def test_a_body_that_is_not_json(server):
    raw.expect_error(raw.post(server, b"{not json"), 400)


def test_a_body_that_is_not_utf8(server):
    body = b'{"model": "m", "messages": [{"role": "user", "content": "\xff\xfe"}]}'
    raw.expect_error(raw.post(server, body), 400)


def test_an_empty_body(server):
    raw.expect_error(raw.post(server, b""), 400)


def test_an_oversized_body(server):
    body = json.dumps({"model": server.model, "messages": [], "padding": "x" * (9 << 20)})
    raw.expect_error(raw.post(server, body), 413)


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_field(server, missing):
    request = {"model": server.model, "messages": [{"role": "user", "content": "hi"}]}
    del request[missing]
    error = raw.expect_error(raw.post(server, json.dumps(request)), 400)
    assert missing in error["message"]


def test_a_prompt_beyond_the_context(server):
    messages = [{"role": "user", "content": "one two three four " * 60_000}]
    error = raw.expect_error(raw.chat(server, messages=messages), 400, "context_length_exceeded")
    assert "token" in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -1},
        {"temperature": 1e9},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.5},
        {"max_tokens": 0},
        {"max_tokens": -5},
        {"max_tokens": 10**12},
        {"n": 0},
        {"n": 1000},
        {"seed": -1},
        {"top_logprobs": 21, "logprobs": True},
        {"top_logprobs": 2},
        {"stop": ["x"] * 1000},
        {"messages": []},
        {"messages": "hello"},
        {"messages": [{"role": "wizard", "content": "hi"}]},
        {"messages": [{"role": "user"}]},
        {"stream": "yes"},
        {"response_format": {"type": "interpretive_dance"}},
    ],
    ids=json.dumps,
)
def test_absurd_parameters(server, fields):
    raw.expect_error(raw.chat(server, **fields), 400)


def test_a_path_that_does_not_exist(server):
    raw.expect_error(raw.post(server, b"{}", path="/v1/no/such/path"), 404)
