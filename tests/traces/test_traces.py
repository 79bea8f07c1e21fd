"""Traces from a client's header through the coordinator to every worker."""

import secrets

import grpc
from conftest import KEY, MODEL, WORLD_SIZE, spans_of

SERVER, INTERNAL = 2, 1
QUESTION = "What is the capital of France?"
PHASES = ("attention", "dispatch", "experts", "combine", "head")
# Steps of prefill and decode that workers tell, and what the coordinator tells of a request.
SPANS_MAX = WORLD_SIZE * (16 + 4) + 12


def traceparent(sampled=True):
    trace, span = secrets.token_hex(16), secrets.token_hex(8)
    return trace, span, f"00-{trace}-{span}-0{int(sampled)}"


def one(spans, name):
    found = [span for span in spans if span["name"] == name]
    assert len(found) == 1, (name, [span["name"] for span in spans])
    return found[0]


def check_tree(spans, root, caller):
    """All of one tree, below the caller's span, each within its parent."""
    by_id = {span["id"]: span for span in spans}
    assert len(by_id) == len(spans) <= SPANS_MAX
    assert root["parent"] == caller and root["kind"] == SERVER
    for span in (span for span in spans if span is not root):
        parent = by_id[span["parent"]]
        # Clocks are those of one machine; a worker hears of a step before the coordinator hears of its end.
        assert parent["start"] <= span["start"], (parent, span)


def check_phases(spans, root):
    names = ["authenticate", "prepare", "admission", "queue", "prefill", "decode"]
    phases = {name: one(spans, name) for name in names}
    for phase in phases.values():
        assert phase["parent"] == root["id"] and phase["service"] == "switchyard-coordinator"
    waits = [phases[name] for name in ("queue", "prefill", "decode")]
    assert all(before["end"] <= after["end"] and before["start"] <= after["start"] for before, after in zip(waits, waits[1:]))
    return phases


def check_steps(spans, phases):
    """Every rank tells the prefill, and some of the decode, in the phase that it belongs to."""
    steps = [span for span in spans if span["name"] == "step"]
    for phase in ("prefill", "decode"):
        of_phase = [step for step in steps if step["parent"] == phases[phase]["id"]]
        assert {step["attributes"]["switchyard.rank"] for step in of_phase} == set(range(WORLD_SIZE)), phase
        assert len({step["pid"] for step in of_phase}) == WORLD_SIZE, "a process of its own for each rank"
    for step in steps:
        told = step["attributes"]
        assert step["service"] == "switchyard-worker" and told["switchyard.epoch"] >= 1
        seconds = sum(told[f"switchyard.step.{phase}_seconds"] for phase in PHASES)
        assert 0 < seconds <= (step["end"] - step["start"]) / 1e9 * 1.05


def test_a_request_is_one_trace_from_the_client_to_every_worker(cluster):
    trace, caller, header = traceparent()
    answer = cluster.ask(QUESTION, header)
    spans = cluster.whole(trace, "POST /v1/chat/completions")
    root = one(spans, "POST /v1/chat/completions")
    check_tree(spans, root, caller)
    phases = check_phases(spans, root)
    check_steps(spans, phases)
    told = root["attributes"]
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "deepseek",
        "gen_ai.request.model": MODEL.name,
        "gen_ai.request.max_tokens": 24,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 7,
        "gen_ai.response.model": MODEL.name,
        "gen_ai.response.id": answer["id"],
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": answer["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": 24,
        "http.response.status_code": 200,
        "http.route": "/v1/chat/completions",
    }
    assert {key: told.get(key) for key in expected} == expected
    assert told["request.id"].startswith("req-")


def test_nothing_that_was_said_is_in_it(cluster):
    trace, _, header = traceparent()
    answer = cluster.ask("The word is xylophone", header, max_tokens=40)["choices"][0]["message"]["content"]
    cluster.whole(trace, "POST /v1/chat/completions")
    said = [QUESTION, "capital", "xylophone", KEY, answer]
    exported = "".join(str(export) for export in cluster.sink.exports())
    assert not [words for words in said if words.strip() in exported]


def test_the_caller_decides_and_the_answer_is_the_same(cluster):
    trace, _, header = traceparent(sampled=False)
    quiet, silent = cluster.ask(QUESTION, header), cluster.ask(QUESTION)
    later, _, header = traceparent()
    told = cluster.ask(QUESTION, header)
    cluster.whole(later, "POST /v1/chat/completions")
    assert cluster.spans(trace) == []
    # The ratio is 0, so nothing but what was asked for was exported.
    exported = [span for export in cluster.sink.exports() for span in spans_of(export)]
    assert [span for span in exported if not span["parent"]] == []
    answers = [answer["choices"][0]["message"]["content"] for answer in (quiet, silent, told)]
    assert len(set(answers)) == 1


def field(number, value):
    """A field of a protobuf message: an integer, or bytes."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    value = value.encode() if isinstance(value, str) else value
    return bytes([number << 3 | 2, len(value)]) + value


def test_a_call_over_grpc_is_traced_by_its_metadata(cluster):
    trace, caller, header = traceparent()
    chat = field(1, MODEL.name) + field(2, field(1, "user") + field(2, QUESTION)) + field(5, 12) + field(10, 0)
    metadata = [("authorization", f"Bearer {KEY}"), ("traceparent", header)]
    with grpc.insecure_channel(f"127.0.0.1:{cluster.grpc}") as channel:
        call = channel.unary_stream("/switchyard.v1.Inference/Chat")
        assert list(call(chat, metadata=metadata, timeout=120))
    spans = cluster.whole(trace, "grpc.request")
    root = one(spans, "grpc.request")
    check_tree(spans, root, caller)
    check_steps(spans, check_phases(spans, root))
    assert root["attributes"]["rpc.method"] == "Chat"
    assert root["attributes"]["gen_ai.request.model"] == MODEL.name
