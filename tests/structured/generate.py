"""Generates answers to JSON Schemas and checks that each one parses and validates.

    python tests/structured/generate.py --url http://127.0.0.1:8080 --key KEY --model demo-flash --count 10000

The model has never seen these schemas and is sampled hot, so nothing but the grammar keeps its answers in form.
Exits with 1 if a single answer does not validate.
"""

import argparse
import collections
import concurrent.futures
import http.client
import json
import pathlib
import sys
import threading
import time
import urllib.parse

import jsonschema

# Nested, unions, recursion, unicode, numbers, strings, maps; the grammar's own tests use them, too.
SCHEMAS = [
    (entry["name"], entry["schema"])
    for entry in json.loads(pathlib.Path(__file__).with_name("schemas.json").read_text("utf-8"))
]

LOCAL = threading.local()


def post(url, key, body):
    """Sends one request over the thread's own connection."""
    if not hasattr(LOCAL, "connection"):
        LOCAL.connection = http.client.HTTPConnection(url.hostname, url.port, timeout=300)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    LOCAL.connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = LOCAL.connection.getresponse()
    return response.status, json.loads(response.read())


def generate(options, index):
    """The problem with answer number `index`, if any, and its tokens."""
    name, schema = SCHEMAS[index % len(SCHEMAS)]
    thinks = options.think and index // len(SCHEMAS) % 4 == 3
    body = {
        "model": options.model,
        "messages": [{"role": "user", "content": f"Give me JSON with number {index}"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": name, "schema": schema}},
        "temperature": 1.0,
        "seed": index,
        "max_tokens": options.max_tokens,
        "thinking": {"type": "enabled" if thinks else "disabled"},
    }
    status, answer = post(options.url, options.key, body)
    if status != 200:
        return name, f"status {status}: {answer['error']['message']}", 0
    choice = answer["choices"][0]
    tokens = answer["usage"]["completion_tokens"]
    if choice["finish_reason"] != "stop":
        return name, f"finish_reason {choice['finish_reason']}", tokens
    content = choice["message"]["content"]
    try:
        jsonschema.validate(json.loads(content), schema, jsonschema.Draft202012Validator)
    except (ValueError, jsonschema.ValidationError) as error:
        return name, f"{content!r}: {str(error).splitlines()[0]}", tokens
    return name, None, tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", type=urllib.parse.urlsplit, required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--model", default="demo-flash")
    parser.add_argument("--count", type=int, default=10 * len(SCHEMAS))
    # A hot map goes on for as long as the dice say: one of some thousand takes more than 2,000.
    parser.add_argument("--max-tokens", type=int, default=3300)
    parser.add_argument("--think", action="store_true", help="let the model think in every fourth round")
    parser.add_argument("--concurrency", type=int, default=16)
    options = parser.parse_args()
    start, tokens, problems = time.monotonic(), 0, collections.defaultdict(list)
    with concurrent.futures.ThreadPoolExecutor(options.concurrency) as pool:
        for name, problem, count in pool.map(lambda i: generate(options, i), range(options.count)):
            tokens += count
            if problem:
                problems[name].append(problem)
    seconds = time.monotonic() - start
    failed = sum(map(len, problems.values()))
    print(f"{options.count} answers to {len(SCHEMAS)} schemas, {tokens} tokens, {seconds:.0f} s; {failed} not valid")
    for name, found in problems.items():
        print(f"  {name}: {len(found)}, for instance {found[0][:300]}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
