"""How much slower plain requests become beside constrained ones: rounds of alone, beside, alone, beside, ...

    python benches/structured.py --url http://127.0.0.1:8080 --key KEY --rounds 5

Four connections ask plain questions all the time and are measured; in every other part four more ask for answers to a hostile
pattern. Four further plain ones take their place otherwise, so that both parts have the same number of sequences.
"""

import argparse
import concurrent.futures
import http.client
import json
import statistics
import time
import urllib.parse

# A hundred tokens at least, from a pattern that backtracks without end where it is matched naively. A regular expression is
# not told to the model, so that both kinds of request have the same prompt.
HOSTILE = r'\{"a": "(x+x+)+[a-z]{5,40}", "b": \[("value [0-9]{1,3}", ){40,400}"(red|green|blue|[α-ω]+)*"\]\}'


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
        body["response_format"] = {"type": "regex", "regex": form}
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
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client, options, None, until, measured) for _ in range(4)]
        clients += [pool.submit(client, options, form, until, others) for _ in range(4)]
    for done in clients:
        done.result()
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
