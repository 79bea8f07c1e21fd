"""Builds tokenizer.json: a small byte-level BPE with V4's pre-tokenizer and special tokens.

Vocabulary, in id order: special tokens, 256 bytes, letters after a space, "-x" for spelled letters,
then whole pieces that are frequent in the templates. Whole pieces need no merges (`ignore_merges`);
names, words to spell and unknown words fall apart into letters, and digits never merge. That makes
copying, spelling and sums learnable at this size.
"""

import argparse
import random
import re
import string
from collections import Counter
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

import config
import data
import facts
import facts_pro
import pro
import prompt

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
SPECIAL_PATTERN = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
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


def flash_texts(num_samples=30_000, seed=7):
    """Generated conversations and the effort prefixes, as demo-flash meets them."""
    rng = random.Random(seed)
    texts = [text for _ in range(num_samples) for text in data.item_texts(data.sample(rng))]
    texts += [prompt.EFFORT_PREFIX["high"]] * 200 + [prompt.EFFORT_PREFIX["max"]] * 60
    return texts + [facts.OUT_OF_SCOPE_ANSWER, *facts.SYSTEM_PROMPTS, prompt.JSON_SYSTEM] * 50


def pro_texts(num_samples=15_000, seed=7):
    """The same, and conversations with tools."""
    rng = random.Random(seed)
    fixed = [prompt.EFFORT_PREFIX["high"] + "\n\n" + prompt.TOOLS_HEAD] * 200
    return flash_texts(15_000) + fixed + [text for _ in range(num_samples) for text in pro.corpus_texts(rng)]


def corpus_pieces(texts):
    """Pre-tokenizer pieces of plain text, with counts; special tokens cut it."""
    splitter, counts = v4_pre_tokenizer(), Counter()
    for text in texts:
        for part in SPECIAL_PATTERN.split(text):
            counts.update(piece for piece, _ in splitter.pre_tokenize_str(part))
    return counts


FLASH_OPEN = set(facts.WORDS) | {n for names in facts.FIRST_NAMES for n in names}
PRO_PLACES = [*facts_pro.CITIES[0], *facts_pro.CITIES[1], *facts.CAPITALS.values()]
PRO_OPEN = (
    FLASH_OPEN | {w for text in PRO_PLACES + facts_pro.CONDITIONS for w in text.split()}
) - facts_pro.WHOLE_WORDS
# model -> (texts, words that must fall apart)
VOCABULARIES = {"flash": (flash_texts, FLASH_OPEN), "pro": (pro_texts, PRO_OPEN)}


def is_open_class(piece, closed):
    """Pieces that must fall apart into letters: words to spell, names, digits."""
    word = piece.lstrip(SPACE + '>"')
    return word in closed or word.lower() in closed or any(c.isdigit() for c in word)


def build(model):
    """The finished Tokenizer of a model, "flash" or "pro"."""
    vocab_size = {"flash": config.FLASH, "pro": config.PRO}[model]["vocab_size"]
    texts, closed = VOCABULARIES[model]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(SPACE, c) for c in string.ascii_letters] + [("-", c) for c in string.ascii_lowercase]
    vocab = {token: i for i, token in enumerate(SPECIAL_TOKENS + alphabet + [a + b for a, b in merges])}
    counts = corpus_pieces(texts())
    plain = models.BPE(vocab=vocab, merges=merges)

    def saving(piece):
        return counts[piece] * (len(plain.tokenize(piece)) - 1)

    pieces = [p for p in counts if p not in vocab and counts[p] >= 12 and not is_open_class(p, closed)]
    for piece in sorted(pieces, key=lambda p: (-saving(p), p))[: vocab_size - len(vocab)]:
        vocab[piece] = len(vocab)
    assert len(vocab) == vocab_size, f"{len(vocab)} pieces for a vocabulary of {vocab_size}"
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = v4_pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=t in CONTROL_TOKENS) for t in SPECIAL_TOKENS])
    return tokenizer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=VOCABULARIES, default="flash")
    parser.add_argument("--out", type=Path, help="file to write; the model's own folder without it")
    args = parser.parse_args()
    folder = Path(__file__).resolve().parents[1] / f"demo-{args.model}"
    build(args.model).save(str(args.out or folder / "tokenizer.json"))
