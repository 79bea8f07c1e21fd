"""Builds tokenizer.json: a small byte-level BPE with V4's pre-tokenizer and special tokens.

Vocabulary, in id order: special tokens, 256 bytes, letters after a space, "-x" for spelled letters,
then whole pieces that are frequent in the templates. Whole pieces need no merges (`ignore_merges`);
names, words to spell and unknown words fall apart into letters, and digits never merge. That makes
copying, spelling and sums learnable at this size.
"""

import argparse
import random
import string
from collections import Counter
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

import data
import facts
import prompt

VOCAB_SIZE = 1024
SPACE = "Ġ"
SPECIAL_TOKENS = [
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜▁pad▁｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<|EOT|>",
    "<think>",
    "</think>",
    "｜DSML｜",
    "<｜latest_reminder｜>",
    "<｜action｜>",
    "<｜query｜>",
    "<｜authority｜>",
    "<｜domain｜>",
    "<｜title｜>",
    "<｜extracted_url｜>",
    "<｜read_url｜>",
]
CONTROL_TOKENS = {"<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<|EOT|>"}
SPLITS = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]


def v4_pre_tokenizer():
    """Three isolated splits, then bytes; no prefix space."""
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS]
    return pre_tokenizers.Sequence(steps + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def corpus_pieces(num_samples=30_000, seed=7):
    """Pre-tokenizer pieces of generated conversations and of the effort prefix, with counts."""
    splitter, rng, counts = v4_pre_tokenizer(), random.Random(seed), Counter()
    texts = [text for _ in range(num_samples) for text in data.item_texts(data.sample(rng))]
    texts += [prompt.EFFORT_PREFIX["high"]] * 200 + [prompt.EFFORT_PREFIX["max"]] * 60
    texts += [facts.OUT_OF_SCOPE_ANSWER, *facts.SYSTEM_PROMPTS, prompt.JSON_SYSTEM] * 50
    for text in texts:
        counts.update(piece for piece, _ in splitter.pre_tokenize_str(text))
    return counts


def is_open_class(piece):
    """Pieces that must fall apart into letters: words to spell, names, digits."""
    word = piece.lstrip(SPACE)
    closed = set(facts.WORDS) | {n for names in facts.FIRST_NAMES for n in names}
    return word in closed or word.lower() in closed or any(c.isdigit() for c in word)


def build(vocab_size=VOCAB_SIZE):
    """The finished Tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(SPACE, c) for c in string.ascii_letters] + [("-", c) for c in string.ascii_lowercase]
    vocab = {token: i for i, token in enumerate(SPECIAL_TOKENS + alphabet + [a + b for a, b in merges])}
    counts = corpus_pieces()
    plain = models.BPE(vocab=vocab, merges=merges)

    def saving(piece):
        return counts[piece] * (len(plain.tokenize(piece)) - 1)

    pieces = [p for p in counts if p not in vocab and counts[p] >= 12 and not is_open_class(p)]
    for piece in sorted(pieces, key=lambda p: (-saving(p), p))[: vocab_size - len(vocab)]:
        vocab[piece] = len(vocab)
    assert len(vocab) == vocab_size
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = v4_pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=t in CONTROL_TOKENS) for t in SPECIAL_TOKENS])
    return tokenizer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "demo-flash" / "tokenizer.json")
    build().save(str(parser.parse_args().out))
