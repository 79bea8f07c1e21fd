"""A client that goes away in the middle of an answer."""

import raw


def blocks_in_use(server):
    total = raw.metric(server, "switchyard_scheduler_kv_blocks")
    return total - raw.metric(server, "switchyard_scheduler_free_kv_blocks")


def test_a_client_that_hangs_up_frees_its_blocks(client, server):
    assert raw.eventually(lambda: blocks_in_use(server) == 0)
    stream = client.chat.completions.create(
        model=server.model,
        messages=[{"role": "user", "content": "Spell the word switchyard."}],
        max_tokens=3500,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    assert raw.eventually(lambda: blocks_in_use(server) > 0)
    stream.close()
    # A step of the demo model takes milliseconds; the answer would have gone on for seconds.
    assert raw.eventually(lambda: blocks_in_use(server) == 0, seconds=2)
    answer = client.chat.completions.create(
        model=server.model, messages=[{"role": "user", "content": "hello"}], max_tokens=4
    )
    assert answer.choices[0].message
