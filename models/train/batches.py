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
ROWS_PER_BATCH = 25


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


def rendered(renderer, case, thinking, effort):
    """-> (prompt ids, ids of the right generation with EOS) of a case."""
    item, tools = case.item, case.tools
    opening = renderer.opening(json_mode=item.json_mode, effort=effort if thinking else None, tools=tools)
    if not item.calls:
        question, answer = renderer.turn(item, thinking)
    else:
        question, answer = renderer.call_turn(item, tools, thinking)
        if case.after_call:
            results, final = renderer.result_turn(item, thinking)
            question, answer = question + answer + results, final
    return opening + question, answer


def batch(rng, renderer, rows, length, weights=None, make=conversation):
    """-> ids [rows, length], and the flat positions [P] whose next token [P] is an answer token."""
    ids = torch.full((rows, length), prompt.PAD)
    is_target = torch.zeros(rows, length, dtype=torch.bool)
    for row in range(rows):
        filled = 0
        while filled < 8:
            tokens, flags = make(rng, renderer, length, weights)
            filled = sum(flags)
        ids[row, : len(tokens)] = torch.tensor(tokens)
        is_target[row, : len(flags)] = torch.tensor(flags)
    positions = is_target[:, 1:].flatten().nonzero().squeeze(1)
    positions = positions + positions // (length - 1)
    return ids, positions, ids.flatten()[positions + 1]


def evaluation_batch(pairs):
    """(prompt ids, answer ids) of many cases, padded: ids [n, T], target flags [n, T]."""
    length = max(len(q) + len(a) for q, a in pairs)
    ids = torch.full((len(pairs), length), prompt.PAD)
    flags = torch.zeros(len(pairs), length, dtype=torch.bool)
    for i, (question, answer) in enumerate(pairs):
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


def right(model, pairs):
    """[bool] for (prompt ids, answer ids) pairs, some rows at a time, those of like length together."""
    order, verdict = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1])), [False] * len(pairs)
    for start in range(0, len(pairs), ROWS_PER_BATCH):
        chunk = order[start : start + ROWS_PER_BATCH]
        for i, ok in zip(chunk, greedy_correct(model, *evaluation_batch([pairs[i] for i in chunk])).tolist()):
            verdict[i] = ok
    return verdict


def held_out_accuracy(model, renderer, recipe, count, seed):
    """Exact-match accuracy per family on `count` held-out cases each, in the recipe's mode."""
    was_training = model.training
    model.eval()
    accuracy = {}
    for family in recipe.families:
        cases = recipe.cases(family, count, seed)
        verdict = right(model, [rendered(renderer, c, recipe.thinking, recipe.effort) for c in cases])
        accuracy[family] = sum(verdict) / len(verdict)
    model.train(was_training)
    return accuracy


def seeded_stream(seed, renderer, rows, length, weights, make):
    """Endless batches."""
    rng = random.Random(seed)
    while True:
        yield batch(rng, renderer, rows, length, weights, make)
