"""Runs as data: one TOML file per recipe, a table per stage (``tokenizer``, ``prior``, ``decoder``,
``classifier``) or for a study (``scaling``, ``compare``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nextscale.config import merge, read_toml
from nextscale.studies.settings import ComparisonStudy, ScalingStudy
from nextscale.train.settings import AnyRun, ClassifierRun, DecoderRun, PriorRun, TokenizerRun

_HOME = Path(__file__).parent

#: The settings class of each stage.
STAGES: dict[str, type[AnyRun]] = {
    "tokenizer": TokenizerRun,
    "prior": PriorRun,
    "decoder": DecoderRun,
    "classifier": ClassifierRun,
}

#: The settings class of each kind of study.
STUDIES: dict[str, type[ScalingStudy] | type[ComparisonStudy]] = {
    "scaling": ScalingStudy,
    "compare": ComparisonStudy,
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


def read_study(recipe: str, kind: str) -> dict[str, Any]:
    """A study of a recipe. A family may name recipes in place of settings.

    ``recipe`` gives its prior, and its tokenizer where that recipe trains one; ``tokenizer_recipe`` gives a
    tokenizer to train. What the family says itself counts more.

    Raises:
        ValueError: as of `read_recipe`.
    """
    tree = read_recipe(recipe, kind)
    families = tree.get("families")
    if not isinstance(families, list):
        return tree
    return {**tree, "families": [_family(item) if isinstance(item, dict) else item for item in families]}


def _family(given: dict[str, Any]) -> dict[str, Any]:
    own = {name: value for name, value in given.items() if name not in ("recipe", "tokenizer_recipe")}
    base: dict[str, Any] = {}
    if "recipe" in given:
        base["prior"] = read_recipe(given["recipe"], "prior")
        if not base["prior"].get("tokenizer_from"):
            base["tokenizer"] = read_recipe(given["recipe"], "tokenizer")
    if "tokenizer_recipe" in given:
        base["tokenizer"] = read_recipe(given["tokenizer_recipe"], "tokenizer")
        base["prior"] = {**base.get("prior", {}), "tokenizer_from": ""}
    if own.get("prior", {}).get("tokenizer_from"):
        base.pop("tokenizer", None)
    return merge(base, own)
