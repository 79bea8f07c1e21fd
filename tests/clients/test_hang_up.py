"""A client that goes away in the middle of an answer."""

import raw

BLOCKS_USED = "switchyard_coordinator_kv_blocks_used"


def test_a_client_that_hangs_up_frees_its_blocks(client, server):
    assert raw.eventually(lambda: raw.metric(server, BLOCKS_USED) == 0)
    stream = client.chat.completions.create(
        model=server.model,
        messages=[{"role": "user", "content": "Spell the word switchyard."}],
        max_tokens=2000,
        temperature=1.5,
        seed=1,
        stream=True,
    )
    for _ in range(2):
        next(iter(stream))
    held = raw.metric(server, BLOCKS_USED)
    stream.close()
    assert raw.eventually(lambda: raw.metric(server, BLOCKS_USED) == 0)
    assert held >= 0
    answer = client.chat.completions.create(
        model=server.model, messages=[{"role": "user", "content": "hello"}], max_tokens=4
    )
    assert answer.choices[0].message
