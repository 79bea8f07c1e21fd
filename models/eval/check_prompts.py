"""Compares the training code's prompts with those of DeepSeek's own renderer, token by token.

    pip install deepseek-recipe==0.2.0
    python models/eval/check_prompts.py

A model that is trained on prompts which differ in one token from those that are served answers worse, and nothing else shows it.
"""

import json
import random
import sys
from pathlib import Path

import deepseek_recipe as recipe
from tokenizers import Tokenizer

MODELS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(MODELS / "train"))

import facts  # noqa: E402
import pro  # noqa: E402
import prompt  # noqa: E402
import tools as tool_data  # noqa: E402

NUM_CONVERSATIONS = 500


def messages_of(item, tools, thinking):
    """One turn with its answer, as an API client sends it back."""
    messages = [recipe.UserMessage(item.question)]
    if item.calls:
        by_kind, ids = {tool.kind: tool for tool in tools}, [f"call_{i}" for i in range(len(item.calls))]
        calls = []
        for call_id, call in zip(ids, item.calls):
            tool = by_kind[call.kind]
            calls.append(recipe.ToolCall(call_id, tool.name, json.dumps({tool.parameter: call.argument})))
        messages.append(recipe.AssistantMessage("", item.thought if thinking else None, calls))
        messages += [recipe.ToolMessage(call.result, call_id) for call_id, call in zip(ids, item.calls)]
    thought = (prompt.THINK_RESULT if item.calls else item.thought) if thinking else None
    return messages + [recipe.AssistantMessage(item.answer if item.calls else item.final(thinking), thought)]


def conversation(rng, renderer):
    """The same random conversation twice: our token ids, and the official renderer's Conversation."""
    tools = tool_data.definitions(rng) if rng.random() < 0.7 else []
    thinking = rng.random() < 0.7
    effort = rng.choice(list(prompt.EFFORT_PREFIX)) if thinking else None
    system = rng.choice(["", *facts.SYSTEM_PROMPTS])
    json_mode = rng.random() < 0.2
    ids = renderer.opening(system, json_mode, effort, tools)
    messages = [recipe.SystemMessage(system)] if system else []
    for _ in range(rng.randint(0, 3)):
        item = pro.item_with_tools(rng, tools, pro.WEIGHTS) if tools else pro.plain_item(rng, False, ())
        shown = thinking and bool(tools)
        # Without tools the renderer drops earlier thoughts; the answer is what it was.
        for part, _ in pro.segments(random.Random(0), renderer, item, tools, shown, shown):
            ids = ids + part
        messages += messages_of(item, tools, shown)
    last = pro.plain_item(rng, False, tools)
    ids = ids + renderer.turn(last, thinking)[0]
    definitions = [recipe.ToolDefinition(t.name, t.schema["description"], t.schema["parameters"]) for t in tools]
    return ids, recipe.Conversation(
        [*messages, recipe.UserMessage(last.question)],
        thinking_mode=thinking,
        tools=definitions or None,
        reasoning_effort=effort,
        response_format="json_object" if json_mode else "text",
    )


def main():
    file = str(Path(sys.argv[1]) if len(sys.argv) > 1 else MODELS / "demo-pro" / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    renderer = prompt.Renderer(tokenizer)
    official = recipe.DeepseekV4Encoding().with_tokenizer(recipe.Tokenizer.from_file(file))
    rng = random.Random(1)
    for number in range(NUM_CONVERSATIONS):
        ours, theirs = conversation(rng, renderer)
        expected = official.encode(theirs)
        if ours != expected:
            sys.exit(
                f"conversation {number} differs; the training code renders\n{tokenizer.decode(ours, False)}\n"
                f"and the official renderer\n{tokenizer.decode(expected, False)}"
            )
    print(f"{NUM_CONVERSATIONS} conversations agree")


if __name__ == "__main__":
    main()
