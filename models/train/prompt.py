"""Renders conversations to token ids in the V4 chat format, with the positions to learn from."""

BOS, EOS, PAD, USER, ASSISTANT, THINK, END_THINK = 0, 1, 2, 3, 4, 6, 7

JSON_SYSTEM = (
    "You are a helpful assistant designed to output JSON.\n## Response Format:\n\nReply with JSON object ONLY."
)
EFFORT_PREFIX = {
    "low": "",
    "high": (
        "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
        "You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, "
        "rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.\n"
        "Explicitly write out your entire deliberation process, documenting every intermediate step, considered alternative, "
        "and rejected hypothesis to ensure absolutely no assumption is left unchecked.\n\n"
    ),
    "max": (
        "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
        "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively decompose the problem "
        "into its most fundamental components, trace every causal chain to its root, and resolve the underlying cause rather than "
        "any surface symptom.\n"
        "Do not stop reasoning until you have independently verified the solution from multiple angles and are certain that no "
        "assumption remains unchecked and no error remains undiscovered.\n\n"
    ),
}

TOOLS_HEAD = """## Tools

You have access to a set of tools to help answer the user's question. \
You can invoke tools by writing a "<｜DSML｜tool_calls>" block like the following:

<｜DSML｜tool_calls>
<｜DSML｜invoke name="$TOOL_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$TOOL_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜tool_calls>

String parameters should be specified as is and set `string="true"`. For all other types \
(numbers, booleans, arrays, objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning inside \
<think>...</think> BEFORE any tool calls or final response.

Otherwise, output directly after </think> with tool calls or final response.

"""
TOOLS_SCHEMAS = "### Available Tool Schemas\n\n"
TOOLS_TAIL = "\n\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.\n"
# What the model thinks when a tool has answered.
THINK_RESULT = "I have the result."


def tools_text(tools, brief=False):
    """The tool prompt; `brief` leaves out what is the same in all of them, to save training time."""
    lines = "\n".join(tool.line() for tool in tools)
    return ("" if brief else TOOLS_HEAD) + TOOLS_SCHEMAS + lines + TOOLS_TAIL


def system_text(system, json_mode, tools=(), brief=False):
    """System part of a prompt; tools and JSON mode add their own messages after the (possibly empty) system text."""
    added = ([tools_text(tools, brief)] if tools else []) + ([JSON_SYSTEM] if json_mode else [])
    return "\n\n".join([system, *added])


def calls_text(calls, tools):
    """A DSML block."""
    by_kind, text = {tool.kind: tool for tool in tools}, "\n\n<｜DSML｜tool_calls>\n"
    for call in calls:
        tool = by_kind[call.kind]
        text += (
            f'<｜DSML｜invoke name="{tool.name}">\n'
            f'<｜DSML｜parameter name="{tool.parameter}" string="true">{call.argument}</｜DSML｜parameter>\n'
            "</｜DSML｜invoke>\n"
        )
    return text + "</｜DSML｜tool_calls>"


def results_text(calls):
    """What the tools said, as one turn."""
    return "\n\n".join(f"<tool_result>{call.result}</tool_result>" for call in calls)


class Renderer:
    """Token ids of conversations; caches the encoding of repeated texts."""

    def __init__(self, tokenizer):
        self.tokenizer, self.cache = tokenizer, {}

    def encode(self, text):
        ids = self.cache.get(text)
        if ids is None:
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            if len(self.cache) < 200_000:
                self.cache[text] = ids
        return ids

    def opening(self, system="", json_mode=False, effort=None, tools=(), brief=False):
        """Ids from BOS to the end of the system part; `effort` is None in chat mode."""
        prefix = EFFORT_PREFIX[effort] if effort else ""
        text = prefix + system_text(system, json_mode, tools, brief)
        return [BOS] + (self.encode(text) if text else [])

    def turn(self, item, thinking):
        """-> (question ids up to the generation point, answer ids with EOS); the item makes no calls."""
        return self.ask(item.question, thinking), self.reply(item.thought, item.final(thinking), thinking)

    def call_turn(self, item, tools, thinking):
        """-> (question ids, ids of the calls with EOS)."""
        question = self.ask(item.question, thinking)
        return question, self.reply(item.thought, calls_text(item.calls, tools), thinking)

    def result_turn(self, item, thinking):
        """-> (ids of the tools' results, answer ids with EOS)."""
        question = self.ask(results_text(item.calls), thinking)
        return question, self.reply(THINK_RESULT, item.answer, thinking)

    def ask(self, text, thinking):
        return [USER, *self.encode(text), ASSISTANT, THINK if thinking else END_THINK]

    def reply(self, thought, text, thinking):
        return (self.encode(thought) + [END_THINK] if thinking else []) + self.encode(text) + [EOS]
