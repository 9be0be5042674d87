"""Runs as data: one TOML file per recipe, a table per stage (``tokenizer``, ``prior``, ``classifier``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nextscale.config import read_toml
from nextscale.train.settings import ClassifierRun, PriorRun, TokenizerRun

_HOME = Path(__file__).parent

#: The settings class of each stage.
STAGES: dict[str, type[TokenizerRun] | type[PriorRun] | type[ClassifierRun]] = {
    "tokenizer": TokenizerRun,
    "prior": PriorRun,
    "classifier": ClassifierRun,
}


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in _HOME.glob("*.toml"))


def read_recipe(recipe: str, stage: str) -> dict[str, Any]:
    """One stage of a recipe, by its name or the path of a TOML file.

    Raises:
        ValueError: no such recipe (with the nearest name), not TOML, or it has no such stage.
    """
    path = Path(recipe) if recipe.endswith(".toml") else _HOME / f"{recipe}.toml"
    stages = read_toml(path, kind="recipe", name=recipe, names=recipe_names())
    if stage not in stages:
        raise ValueError(f"recipe {recipe!r} has no stage {stage!r}: it has {', '.join(stages)}")
    if not isinstance(stages[stage], dict):
        raise ValueError(f"{path}: {stage} is {stages[stage]!r}: expected a table [{stage}]")
    tree: dict[str, Any] = stages[stage]
    return tree
