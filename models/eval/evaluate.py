"""Evaluates demo-flash on held-out items, as served, and exits non-zero below the threshold.

    python models/eval/evaluate.py --url http://127.0.0.1:8080 --api-key KEY      through the HTTP API
    python models/eval/evaluate.py --local                                        with the training code

An item counts only if the whole answer is right, character by character. Greedy decoding (temperature 0).
"""

import argparse
import json
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MODELS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(MODELS / "train"))

import data  # noqa: E402

MAX_TOKENS = {False: 96, True: 160}
REQUEST_TIMEOUT_S = 120


def request_body(item, args):
    """Chat completion request of one item."""
    body = {
        "model": args.model,
        "temperature": 0,
        "max_tokens": MAX_TOKENS[args.thinking],
        "messages": [{"role": "user", "content": item.question}],
        "thinking": {"type": "enabled" if args.thinking else "disabled"},
    }
    if args.thinking:
        body["reasoning_effort"] = "low"
    if item.json_mode:
        body["response_format"] = {"type": "json_object"}
    return body


def ask_server(item, args):
    """The answer text of one item over HTTP."""
    headers = {"Content-Type": "application/json"}
    if args.api_key:
        headers["Authorization"] = f"Bearer {args.api_key}"
    body = json.dumps(request_body(item, args)).encode()
    request = urllib.request.Request(f"{args.url}/v1/chat/completions", body, headers)
    with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as response:
        return json.load(response)["choices"][0]["message"]["content"]


def served_answers(items, args):
    """Answers of all items, `--concurrency` requests at a time."""
    with ThreadPoolExecutor(args.concurrency) as pool:
        return list(pool.map(lambda item: ask_server(item, args), items))


def local_answers(items, args):
    """Answers of all items from the exported folder, greedy, with the served numerics."""
    from local import LocalModel

    return LocalModel(args.folder).answers(items, args.thinking, MAX_TOKENS[args.thinking])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="base address of a running server")
    where.add_argument("--local", action="store_true", help="run the exported folder with the training code")
    parser.add_argument("--model", default="demo-flash")
    parser.add_argument("--api-key")
    parser.add_argument("--folder", type=Path, default=MODELS / "demo-flash", help="exported folder for --local")
    parser.add_argument("--count", type=int, default=200, help="distinct items per family, fewer if a family has fewer")
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--thinking", action="store_true", help="evaluate thinking mode at low effort")
    parser.add_argument("--show-failures", type=int, default=0, metavar="N", help="print N wrong answers per family")
    args = parser.parse_args()

    passed = True
    print(f"{'family':24}{'items':>7}{'right':>7}{'share':>8}")
    for family in data.FAMILIES:
        items = data.held_out_items(family, args.count, args.seed)
        answers = served_answers(items, args) if args.url else local_answers(items, args)
        wrong = [(item, answer) for item, answer in zip(items, answers) if answer != item.answer]
        share = 1 - len(wrong) / len(items)
        passed &= share >= args.threshold
        print(f"{family:24}{len(items):7}{len(items) - len(wrong):7}{share:8.1%}", flush=True)
        for item, answer in wrong[: args.show_failures]:
            print(f"    {item.question!r}: {answer!r}, not {item.answer!r}")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
