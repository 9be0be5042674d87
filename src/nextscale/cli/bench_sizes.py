"""The sizes that benchmarks know, as models; from the recipes, without torch."""

from __future__ import annotations

from collections.abc import Sequence

from nextscale.config import build, merge, nearest
from nextscale.generate.settings import ModelSettings
from nextscale.recipes import read_recipe
from nextscale.scales import PRESETS
from nextscale.studies.bench.settings import Sized
from nextscale.train.settings import PriorRun, TokenizerRun

_TINY_PX = 32
#: The recipe of each size, and its images' side in pixels where none is given.
_RECIPES = {
    "tiny": ("cifar10-tiny", _TINY_PX), "d8": ("imagenet256-d16", 256), "d12": ("imagenet256-d16", 256),
    "d16": ("imagenet256-d16", 256), "d20": ("imagenet256-d20", 256), "d24": ("imagenet256-d24", 256),
    "d30": ("imagenet256-d30", 256), "d36": ("imagenet512-d36", 512),
}  # fmt: skip


def sized_models(sizes: Sequence[str], px: Sequence[int] | None) -> list[Sized]:
    """Every size at every side of images.

    Args:
        sizes: their names.
        px: sides in pixels; None: what each size is known for.

    Raises:
        ValueError: an unknown size or side, or one that the size does not come in.
    """
    for name in sizes:
        if name not in _RECIPES:
            raise ValueError(
                f"unknown size {name!r}: expected one of {', '.join(_RECIPES)}{nearest(name, list(_RECIPES))}"
            )
    return [_sized(name, side) for name in sizes for side in px or (_RECIPES[name][1],)]


def _sized(name: str, px: int) -> Sized:
    recipe, _ = _RECIPES[name]
    known = (_TINY_PX,) if name == "tiny" else tuple(PRESETS)
    if px not in known:
        raise ValueError(
            f"--px {px}: {name} comes with images of {' or '.join(map(str, known))} pixels a side"
        )
    tree = read_recipe(recipe, "prior")
    if name != "tiny":
        tree = merge(tree, {"prior": {"depth": int(name[1:])}})
    run = build(PriorRun, tree, source=recipe)
    tokenizer = build(TokenizerRun, read_recipe(recipe, "tokenizer"), source=recipe)
    model = ModelSettings(
        schedule=PRESETS.get(px, tokenizer.schedule), tokenizer=tokenizer.tokenizer, prior=run.prior,
        class_names=tuple(str(number) for number in range(10 if name == "tiny" else 1000)),
        sampling=run.sampling,
    )  # fmt: skip
    return Sized(name=name, px=px, model=model, run=run)
