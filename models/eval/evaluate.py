"""Evaluates a demo model on held-out cases, as served or local, and exits non-zero below the threshold.

    python models/eval/evaluate.py --url http://127.0.0.1:8080 --api-key KEY      through the HTTP API
    python models/eval/evaluate.py --local                                        with the training code
    python models/eval/evaluate.py --local --model demo-pro

A case counts only if the whole answer is right, character by character, or every call in name and arguments; in thinking
mode there must also be a thought. Greedy decoding (temperature 0).
"""

import argparse
import json
import re
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(MODELS / "train"))

import prompt  # noqa: E402
from recipes import RECIPES  # noqa: E402

MAX_TOKENS = {False: 160, True: 256}
REQUEST_TIMEOUT_S = 120
DSML_CALL = re.compile('<｜DSML｜invoke name="([^"]*)">\n(.*?)</｜DSML｜invoke>', re.DOTALL)
DSML_PARAMETER = re.compile(
    '<｜DSML｜parameter name="([^"]*)" string="(true|false)">(.*?)</｜DSML｜parameter>\n', re.DOTALL
)


@dataclass(frozen=True)
class Reply:
    """What came back: the thought, the text, and the calls as (name, arguments)."""

    thought: str
    text: str
    calls: list


def named_calls(case):
    """The case's calls as (name, arguments)."""
    by_kind = {tool.kind: tool for tool in case.tools}
    return [(by_kind[c.kind].name, {by_kind[c.kind].parameter: c.argument}) for c in case.item.calls]


def is_right(case, reply, thinking):
    """Whether a reply is what the case asks for."""
    if thinking and not reply.thought.strip():
        return False
    if case.item.calls and not case.after_call:
        return sorted(map(str, reply.calls)) == sorted(map(str, named_calls(case)))
    return not reply.calls and reply.text == case.item.final(thinking)


# --- served ---


def request_messages(case, thinking):
    """The conversation up to the generation, as a client sends it."""
    messages = [{"role": "user", "content": case.item.question}]
    if not case.after_call:
        return messages
    calls = [
        {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for i, (name, arguments) in enumerate(named_calls(case))
    ]
    thought = {"reasoning_content": case.item.thought} if thinking else {}
    messages.append({"role": "assistant", "content": "", "tool_calls": calls, **thought})
    for i, call in enumerate(case.item.calls):
        messages.append({"role": "tool", "tool_call_id": f"call_{i}", "content": call.result})
    return messages


def request_body(case, args):
    """Chat completion request of one case."""
    body = {
        "model": args.model,
        "temperature": 0,
        "max_tokens": MAX_TOKENS[args.thinking],
        "messages": request_messages(case, args.thinking),
        "thinking": {"type": "enabled" if args.thinking else "disabled"},
    }
    if args.thinking:
        body["reasoning_effort"] = args.effort
    if case.tools:
        body["tools"] = [{"type": "function", "function": tool.schema} for tool in case.tools]
    if case.item.json_mode:
        body["response_format"] = {"type": "json_object"}
    return body


def ask_server(case, args):
    """The reply to one case over HTTP."""
    headers = {"Content-Type": "application/json"}
    if args.api_key:
        headers["Authorization"] = f"Bearer {args.api_key}"
    body = json.dumps(request_body(case, args)).encode()
    request = urllib.request.Request(f"{args.url}/v1/chat/completions", body, headers)
    with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as response:
        message = json.load(response)["choices"][0]["message"]
    functions = [call["function"] for call in message.get("tool_calls") or []]
    calls = [(f["name"], json.loads(f["arguments"])) for f in functions]
    return Reply(message.get("reasoning_content") or "", message["content"] or "", calls)


def served_replies(cases, args):
    """Replies to all cases, `--concurrency` requests at a time."""
    with ThreadPoolExecutor(args.concurrency) as pool:
        return list(pool.map(lambda case: ask_server(case, args), cases))


# --- local ---


def parsed(text, thinking):
    """A generation with its markup, taken apart."""
    thought, separator, answer = text.partition("</think>") if thinking else ("", "", text)
    if thinking and not separator:
        return Reply(thought, "", [])
    answer, _, block = answer.partition("\n\n<｜DSML｜tool_calls>")
    calls = []
    for name, body in DSML_CALL.findall(block):
        values = {
            key: value if is_text == "true" else json.loads(value)
            for key, is_text, value in DSML_PARAMETER.findall(body)
        }
        calls.append((name, values))
    return Reply(thought, answer, calls)


def local_replies(cases, args, model):
    """Replies to all cases by the exported folder, greedy, with the served numerics."""
    texts = model.generations(cases, args.thinking, args.effort, MAX_TOKENS[args.thinking])
    return [parsed(text, args.thinking) for text in texts]


def arguments():
    """The command line; mode and effort are the model's defaults unless given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="base address of a running server")
    where.add_argument("--local", action="store_true", help="run the exported folder with the training code")
    parser.add_argument("--model", default="demo-flash", choices=[f"demo-{name}" for name in RECIPES])
    parser.add_argument("--api-key")
    parser.add_argument("--folder", type=Path, help="exported folder for --local; the model's own without it")
    parser.add_argument("--family", action="append", help="only this family; may be given several times")
    parser.add_argument("--count", type=int, default=200, help="distinct cases per family, fewer if a family has fewer")
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument(
        "--thinking", action=argparse.BooleanOptionalAction, help="think, or not; as the model's default without it"
    )
    parser.add_argument("--effort", choices=list(prompt.EFFORT_PREFIX), help="of a thought")
    parser.add_argument("--show-failures", type=int, default=0, metavar="N", help="print N wrong replies per family")
    args = parser.parse_args()
    recipe = RECIPES[args.model.removeprefix("demo-")]
    args.folder = args.folder or recipe.folder
    args.effort = args.effort or recipe.effort
    args.thinking = recipe.thinking if args.thinking is None else args.thinking
    return args, recipe


def main():
    args, recipe = arguments()
    if args.local:
        from local import LocalModel

        model = LocalModel(args.folder)
    passed = True
    print(f"{'family':24}{'cases':>7}{'right':>7}{'share':>8}")
    for family in args.family or recipe.families:
        cases = recipe.cases(family, args.count, args.seed)
        replies = served_replies(cases, args) if args.url else local_replies(cases, args, model)
        wrong = [(case, reply) for case, reply in zip(cases, replies) if not is_right(case, reply, args.thinking)]
        share = 1 - len(wrong) / len(cases)
        passed &= share >= args.threshold
        print(f"{family:24}{len(cases):7}{len(cases) - len(wrong):7}{share:8.1%}", flush=True)
        for case, reply in wrong[: args.show_failures]:
            asked = case.item.question if not case.after_call else [call.result for call in case.item.calls]
            wanted = named_calls(case) if case.item.calls and not case.after_call else case.item.final(args.thinking)
            print(f"    {asked!r}: {reply}, not {wanted!r}")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
