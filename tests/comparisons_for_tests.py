"""A comparison of three toy families on images of 32 pixels, as a TOML file and as settings."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models_for_tests import CLASSES, picture
from nextscale.config import build, merge
from nextscale.studies.settings import ComparisonStudy

_TOKENIZER = """
[compare.families.tokenizer.schedule]
sizes = {sizes}
[compare.families.tokenizer.tokenizer.autoencoder]
base_dim = 8
multipliers = [1, 1, 1, 1]
num_res_blocks = 1
norm_groups = 4
[compare.families.tokenizer.tokenizer.quantizer]
vocab_size = 16
code_dim = 4
num_phis = 1
[compare.families.tokenizer.data]
enlarge = 1.0
[compare.families.tokenizer.ledger]
fingerprint = false
[compare.families.tokenizer.loop]
batch_size = 4
num_steps = 3
evaluate_images = 4
"""
_PRIOR = """
[compare.families.prior]
cache_views = {views}
[compare.families.prior.prior]
kind = "{kind}"
depth = 1
model_dim = 64
num_heads = 2
mlp_ratio = {ratio}
drop_path = 0.0
[compare.families.prior.data]
enlarge = 1.0
validation_share = 0.1
[compare.families.prior.optimizer]
base_lr = 1.0
[compare.families.prior.ledger]
fingerprint = false
[compare.families.prior.loop]
batch_size = 4
num_steps = {steps}
evaluate_images = 4
ema_decay = 0.5
"""
_SCALES, _ONE_SCALE = "[[1, 1], [2, 2], [4, 4]]", "[[4, 4]]"


def _family(kind: str, *, sizes: str, ratio: float, views: int, steps: int = 1, ways: Sequence[str]) -> str:
    samplings = "\n".join(f"[[compare.families.samplings]]\n{way}" for way in ways)
    prior = _PRIOR.format(kind=kind, ratio=ratio, views=views, steps=steps)
    return f'[[compare.families]]\nname = "{kind}"\n{samplings}\n{_TOKENIZER.format(sizes=sizes)}{prior}'


STUDY = """
[compare]
num_samples = 24
few_samples = 12
resamples = 5
looks = 2
timing_batches = [1, 2]
timing_rounds = 1
""" + "\n".join([
    _family(
        "next_scale", sizes=_SCALES, ratio=4.0, views=1, steps=8,
        ways=['name = "plain"\nguidance = 0.0', 'name = "guided"\nguidance = 2.0'],
    ),
    _family("next_token", sizes=_ONE_SCALE, ratio=4.0, views=1, ways=['name = "own"']),
    _family(
        "diffusion", sizes=_SCALES, ratio=1.67, views=0,
        ways=[
            'name = "ddim 3"\nnum_steps = 3',
            'name = "ddpm 5"\nsampler = "ddpm"\nnum_steps = 5\ncandidate = false',
        ],
    ),
])  # fmt: skip


def toy_study(source: Path, **changes: Any) -> ComparisonStudy:
    """The settings of `STUDY`, of images in a folder."""
    tree = tomllib.loads(STUDY)["compare"]
    return build(ComparisonStudy, merge(tree, {"data": {"source": str(source)}, **changes}), source="toys")


def write_images(folder: Path, count: int = 40) -> Path:
    """PNG files of 32 pixels in folders named as the classes of CIFAR-10."""
    for index in range(count):
        home = folder / CLASSES[index % 10]
        home.mkdir(parents=True, exist_ok=True)
        picture(index, (32, 32)).save(home / f"{index:03d}.png")
    return folder
