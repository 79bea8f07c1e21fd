"""The openai client's files and batches against a cluster of two workers."""

import io
import json

import openai
import pytest

import raw

QUESTION = "What is the capital of France?"
CHAT = "/v1/chat/completions"
OVER = ("completed", "failed", "expired", "cancelled")
WAIT_S = 120


def body(server, **fields):
    fields.setdefault("messages", [{"role": "user", "content": QUESTION}])
    plain = {"model": server.model, "temperature": 0, "max_tokens": 8}
    return plain | {"thinking": {"type": "disabled"}} | fields


def line(custom_id, body, url=CHAT):
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def upload(client, lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    file = io.BytesIO(text.encode())
    file.name = "requests.jsonl"
    return client.files.create(file=file, purpose="batch")


def create(client, lines, **options):
    options.setdefault("endpoint", CHAT)
    input_file_id = upload(client, lines).id
    return client.batches.create(input_file_id=input_file_id, completion_window="24h", **options)


def end(client, batch):
    """The batch when it is over."""
    def over():
        found = client.batches.retrieve(batch.id)
        return found if found.status in OVER else None

    found = raw.eventually(over, WAIT_S)
    assert found, client.batches.retrieve(batch.id)
    return found


def content(client, file_id):
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def test_a_batch_from_the_upload_to_the_answers(client, server):
    alone = client.chat.completions.create(
        model=server.model,
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=8,
        extra_body={"thinking": {"type": "disabled"}},
    )
    lines = [line(f"q-{n}", body(server)) for n in range(6)] + [line("bad", body(server, n=99))]
    made = create(client, lines, metadata={"for": "a test"})
    assert made.id.startswith("batch_") and made.status in ("validating", "in_progress")
    batch = end(client, made)
    assert batch.status == "completed", batch
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (7, 6, 1)
    assert batch.metadata == {"for": "a test"}
    answers = content(client, batch.output_file_id)
    assert [answer["custom_id"] for answer in answers] == [f"q-{n}" for n in range(6)]
    for answer in answers:
        assert answer["response"]["status_code"] == 200 and answer["error"] is None
        message = answer["response"]["body"]["choices"][0]["message"]
        assert message["content"] == alone.choices[0].message.content
    assert batch.usage.output_tokens == 6 * alone.usage.completion_tokens
    (refused,) = content(client, batch.error_file_id)
    assert refused["response"]["status_code"] == 400
    assert refused["response"]["body"]["error"]["param"] == "n"


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        ("/v1/completions", {"prompt": "hello", "max_tokens": 4}),
        ("/v1/responses", {"input": QUESTION, "max_output_tokens": 8, "reasoning": {"effort": "none"}}),
    ],
)
def test_other_endpoints(client, server, endpoint, fields):
    lines = [line("one", {"model": server.model} | fields, endpoint)]
    batch = end(client, create(client, lines, endpoint=endpoint))
    assert batch.request_counts.completed == 1, batch
    (answer,) = content(client, batch.output_file_id)
    assert answer["response"]["body"]["usage"]


def test_a_bad_input_is_told_line_by_line(client, server):
    lines = [line("a", body(server)), line("a", body(server)), line("b", {}, "/v1/embeddings")]
    batch = end(client, create(client, lines))
    assert batch.status == "failed"
    found = [(error.line, error.code) for error in batch.errors.data]
    assert found == [(2, "duplicate_custom_id"), (3, "mismatched_url")]


def test_a_batch_is_cancelled(client, server):
    lines = [line(f"q-{n}", body(server, max_tokens=200, ignore_eos=True)) for n in range(200)]
    made = create(client, lines)
    cancelled = client.batches.cancel(made.id)
    assert cancelled.status in ("cancelling", "cancelled")
    assert end(client, made).status == "cancelled"


def test_files_are_listed_read_and_deleted(client, server):
    files = [upload(client, [line(str(n), body(server))]) for n in range(3)]
    ids = [file.id for file in files]
    listed = [file.id for file in client.files.list(purpose="batch", limit=2)]
    assert listed[:3] == ids[::-1], "the latest first, over pages"
    assert client.files.retrieve(ids[0]).bytes == files[0].bytes
    for file in files:
        assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(ids[0])
    assert client.batches.list(limit=1).data


def test_bad_requests_are_refused(client, server):
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=("a.pdf", b"%PDF-1.7"), purpose="batch")
    assert refused.value.param == "file"
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=("a.jsonl", b"{}"), purpose="fine-tune")
    assert refused.value.param == "purpose"
    with pytest.raises(openai.NotFoundError):
        client.batches.create(input_file_id="file-none", endpoint=CHAT, completion_window="24h")
