"""What differs between the two demo models: configuration, mixture, rows, evaluation."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import batches
import config
import data
import pro

MODELS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Recipe:
    """One demo model.

    `stages` are (share of the time at which the stage starts, row lengths taken in turn);
    `conversation(rng, renderer, length, weights)` makes a training row, `cases(family, count, seed)` the evaluation set of a
    family, to be answered in the mode that `thinking` and `effort` say. `grow_from` names the model whose weights it starts from.
    """

    name: str
    config: dict
    generation: dict
    weights: dict
    families: list
    stages: list
    tokens_per_step: int
    conversation: Callable
    cases: Callable
    thinking: bool
    effort: str
    grow_from: str | None = None
    folder: Path = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "folder", MODELS / f"demo-{self.name}")


FLASH = Recipe(
    name="flash",
    config=config.FLASH,
    generation=config.GENERATION,
    weights=data.WEIGHTS,
    families=list(data.FAMILIES),
    stages=[(0.0, (128,)), (0.8, (256,)), (0.95, (512,))],
    tokens_per_step=4096,
    conversation=batches.conversation,
    cases=data.held_out_cases,
    thinking=False,
    effort="low",
)
PRO = Recipe(
    name="pro",
    config=config.PRO,
    generation={**config.GENERATION, "default_thinking": True},
    weights=pro.WEIGHTS,
    families=pro.FAMILIES,
    stages=[(0.0, (pro.BRIEF_ROW, pro.BRIEF_ROW, pro.FULL_ROW))],
    tokens_per_step=3072,
    conversation=pro.conversation,
    cases=pro.held_out_cases,
    thinking=True,
    effort="high",
    grow_from="flash",
)
RECIPES = {recipe.name: recipe for recipe in (FLASH, PRO)}
