"""Packs generated turns into training batches: every row is one conversation filled to the row length."""

import random

import torch

import data
import facts
import prompt

THINKING_SHARE = 0.18
SYSTEM_SHARE = 0.12
JSON_MODE_SHARE = 0.06
TURNS_MAX = 100
# A row of this length has room for one turn after an effort prefix.
SHORT_ROW = 128


def conversation(rng, renderer, length, weights):
    """One row: (token ids, is-target flags) of at most `length` tokens, at least one turn."""
    thinking = rng.random() < THINKING_SHARE
    json_mode = rng.random() < JSON_MODE_SHARE
    effort = rng.choices(["low", "high", "max"], [5, 4, 1])[0] if thinking else None
    system = rng.choice(facts.SYSTEM_PROMPTS) if rng.random() < SYSTEM_SHARE else ""
    ids = renderer.opening(system, json_mode, effort)
    targets = [False] * len(ids)
    turns_max = rng.choice([1, 2, 3]) if thinking else TURNS_MAX
    if prompt.EFFORT_PREFIX.get(effort) and length <= SHORT_ROW:
        turns_max = 1
    for turn in range(turns_max):
        item = data.json_reply(rng, False) if json_mode else data.sample(rng, weights=weights)
        # Only the last turn of a thinking conversation shows its thought.
        think = thinking and turn == turns_max - 1
        question, answer = renderer.turn(item, think)
        if len(ids) + len(question) + len(answer) > length:
            break
        ids += question + answer
        targets += [False] * len(question) + [True] * len(answer)
    return ids, targets


def batch(rng, renderer, rows, length, weights=None):
    """-> ids [rows, length], and the flat positions [P] whose next token [P] is an answer token."""
    ids = torch.full((rows, length), prompt.PAD)
    is_target = torch.zeros(rows, length, dtype=torch.bool)
    for row in range(rows):
        filled = 0
        while filled < 8:
            tokens, flags = conversation(rng, renderer, length, weights)
            filled = sum(flags)
        ids[row, : len(tokens)] = torch.tensor(tokens)
        is_target[row, : len(flags)] = torch.tensor(flags)
    positions = is_target[:, 1:].flatten().nonzero().squeeze(1)
    positions = positions + positions // (length - 1)
    return ids, positions, ids.flatten()[positions + 1]


def evaluation_batch(renderer, items, thinking=False):
    """Single-turn prompts with their gold answers, padded: ids [n, T], target flags [n, T]."""
    rows = []
    for item in items:
        question, answer = renderer.turn(item, thinking)
        opening = renderer.opening(json_mode=item.json_mode, effort="low" if thinking else None)
        rows.append((opening + question, answer))
    length = max(len(q) + len(a) for q, a in rows)
    ids = torch.full((len(rows), length), prompt.PAD)
    flags = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, (question, answer) in enumerate(rows):
        ids[i, : len(question) + len(answer)] = torch.tensor(question + answer)
        flags[i, len(question) : len(question) + len(answer)] = True
    return ids, flags


@torch.no_grad()
def greedy_correct(model, ids, flags):
    """[n] bool: greedy decoding would reproduce the gold answer of the row exactly.

    Greedy output equals the gold answer exactly when every gold token is the arg-max given the gold
    tokens before it, so one forward pass decides.
    """
    hidden, _ = model(ids)
    guess = model.logits(hidden).argmax(-1).view(ids.shape)
    wrong = (guess[:, :-1] != ids[:, 1:]) & flags[:, 1:]
    return ~wrong.any(1)


def held_out_accuracy(model, renderer, count, thinking=False, seed=2024):
    """Exact-match accuracy per family on `count` held-out items each, and the failed items."""
    was_training = model.training
    model.eval()
    accuracy, failed = {}, []
    for family in data.FAMILIES:
        items = data.held_out_items(family, count, seed)
        right = []
        for start in range(0, len(items), 50):
            ids, flags = evaluation_batch(renderer, items[start : start + 50], thinking)
            right += greedy_correct(model, ids, flags).tolist()
        accuracy[family] = sum(right) / len(right)
        failed += [item for item, ok in zip(items, right) if not ok]
    model.train(was_training)
    return accuracy, failed


def seeded_stream(seed, renderer, rows, length, weights=None):
    """Endless batches."""
    rng = random.Random(seed)
    while True:
        yield batch(rng, renderer, rows, length, weights)
