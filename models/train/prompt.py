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


def system_text(system, json_mode):
    """System part of a prompt; JSON mode adds its own message after the (possibly empty) system text."""
    return f"{system}\n\n{JSON_SYSTEM}" if json_mode else system


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

    def opening(self, system="", json_mode=False, effort=None):
        """Ids from BOS to the end of the system part; `effort` is None in chat mode."""
        prefix = EFFORT_PREFIX[effort] if effort else ""
        text = prefix + system_text(system, json_mode)
        return [BOS] + (self.encode(text) if text else [])

    def turn(self, item, thinking):
        """-> (question ids up to the generation point, answer ids with EOS)."""
        question = [USER, *self.encode(item.question), ASSISTANT, THINK if thinking else END_THINK]
        answer = self.encode(item.answer) + [EOS]
        return question, (self.encode(item.thought) + [END_THINK] + answer if thinking else answer)
