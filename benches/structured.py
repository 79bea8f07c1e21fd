"""How much slower plain requests become beside constrained ones: rounds of alone, beside, alone, beside, ...

    python benches/structured.py --url http://127.0.0.1:8080 --key KEY --rounds 5

Four connections ask plain questions all the time and are measured; in every other part four more ask for answers to hostile
schemas. Four further plain ones take their place otherwise, so that both parts have the same number of sequences.
"""

import argparse
import http.client
import json
import statistics
import threading
import time
import urllib.parse

HOSTILE = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "pattern": "^(x+x+)+[a-z]{5,40}$"},
        "b": {"type": "array", "items": {"enum": [f"value {i}" for i in range(200)]}, "maxItems": 20},
        "c": {"anyOf": [{"type": "object", "properties": {f"p{i}": {"type": "string"}}, "required": [f"p{i}"]} for i in range(30)]},
    },
    "required": ["a", "b", "c"],
    "additionalProperties": False,
}


def ask(connection, options, form, seed):
    body = {
        "model": options.model,
        "messages": [{"role": "user", "content": "Give me JSON with name Nora and age 31"}],
        "temperature": 1,
        "seed": seed,
        "max_tokens": 100,
        "ignore_eos": form is None,
        "thinking": {"type": "disabled"},
    }
    if form:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "hostile", "schema": form}}
    headers = {"Authorization": f"Bearer {options.key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    assert response.status == 200, answer
    return answer["usage"]["completion_tokens"]


def client(options, form, until, tokens):
    connection = http.client.HTTPConnection(options.url.hostname, options.url.port, timeout=300)
    seed = 0
    while time.monotonic() < until:
        tokens.append(ask(connection, options, form, seed))
        seed += 1


def part(options, form):
    """Tokens per second of the measured connections, and of the others."""
    until, measured, others = time.monotonic() + options.seconds, [], []
    threads = [threading.Thread(target=client, args=(options, None, until, measured)) for _ in range(4)]
    threads += [threading.Thread(target=client, args=(options, form, until, others)) for _ in range(4)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - start
    return sum(measured) / seconds, sum(others) / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", type=urllib.parse.urlsplit, required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--model", default="demo-flash")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    ratios = []
    for _ in range(options.rounds):
        (alone, _), (beside, constrained) = part(options, None), part(options, HOSTILE)
        ratios.append(beside / alone)
        print(f"plain beside plain {alone:.0f} tok/s, beside constrained {beside:.0f} (which got {constrained:.0f}); {beside / alone:.2f}")
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
