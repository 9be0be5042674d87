"""Trainings of twelve steps, with every kind of chance in them, for tests of whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models_for_tests import SIZES, model_settings, random_generator, write_pictures
from nextscale import Generator
from nextscale.train import loop as train_loop
from nextscale.train.run import train_run
from nextscale.train.settings import AnyRun, ClassifierRun, DecoderRun, PriorRun, TokenizerRun

Run = AnyRun
STEPS = 12
LOOP = {
    "batch_size": 4, "num_steps": STEPS, "precision": "float32", "ema_decay": 0.8,
    "log_every": 3, "save_every": 4, "evaluate_every": 6, "evaluate_images": 3,
}  # fmt: skip


def make_home(folder: Path) -> Path:
    """Put pictures of three classes into a folder, two tokenizers to train priors on (one of one scale), and
    a whole model.
    """
    write_pictures(folder / "pictures", 20, (10, 9), num_classes=3)
    for name, settings in (("given", model_settings()), ("one-scale", model_settings(sizes=[(4, 4)]))):
        tokenizer = random_generator(settings=settings).tokenizer
        Generator(settings.model_copy(update={"prior": None}), tokenizer).save(folder / name)
    names = tuple(f"class {number:02d}" for number in range(3))
    random_generator(model_settings().model_copy(update={"class_names": names})).save(folder / "complete")
    return folder


def tiny_run(kind: str, home: Path, **loop: Any) -> Run:
    """A run of twelve steps on what `make_home` made; ``loop`` changes settings of the loop."""
    common: dict[str, Any] = {
        "data": {"source": str(home / "pictures"), "enlarge": 1.25, "flip": True},
        "optimizer": {"base_lr": 0.1, "warmup_share": 0.1, "clip_norm": 1.0},
        "loop": {**LOOP, **loop},
        "ledger": {"fingerprint": False},  # it takes longer than these trainings
    }
    if kind in ("tokenizer", "adversarial"):
        tokenizer = model_settings().tokenizer
        # codes are moved during the run: idle counters must survive
        losses: dict[str, Any] = {"reset_after": 3}
        if kind == "adversarial":  # and everything else that has a state or reads random numbers
            losses |= {"adversarial": 0.5}
            common["codes"] = {"ema_decay": 0.8, "gradient": "rotation", "scale_dropout": 0.4}
            common["discriminator"] = {
                "num_levels": 2, "spectral_norm": True, "consistency": 1.0, "start": 0.2, "warmup_share": 0.5,
                "lr_factor": 0.5,
            }  # fmt: skip
        return TokenizerRun(schedule={"sizes": SIZES}, tokenizer=tokenizer, losses=losses, **common)
    if kind in ("prior", "next_token", "diffusion"):
        prior: dict[str, Any] = {
            "depth": 2,
            "model_dim": 16,
            "num_heads": 2,
            "drop_path": 0.3,
            "class_dropout": 0.3,
        }
        if kind != "prior":
            prior["kind"] = kind
        if kind == "diffusion":
            common["sampling"] = {"num_steps": 4}
        tokenizer_from = home / ("one-scale" if kind == "next_token" else "given")
        return PriorRun(tokenizer_from=str(tokenizer_from), prior=prior, **common)
    if kind == "decoder":
        common["discriminator"] = {"num_levels": 2, "start": 0.2, "warmup_share": 0.5}
        return DecoderRun(
            init=str(home / "complete"),
            drawn_share=0.6,
            drawn_scales=2,
            losses={"adversarial": 0.5},
            **common,
        )
    common["data"] |= {"enlarge": 1.0}
    return ClassifierRun(
        classifier={"image_size": 8, "stem_dim": 8, "dims": (8, 8)}, max_shift=1, cut_out=3, **common
    )


def train_quietly(run: Run, folder: Path, *, curves: bool = False) -> tuple[dict[str, float], list[str]]:
    """Scores, and what was said. Drawing takes longer than these trainings: most leave it out."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        if not curves:
            patch.setattr(train_loop, "draw_curves", lambda *_: None)
        return train_run(run, folder, device="cpu", say=said.append, progress=False), said


def settled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the weights that no loss depends on: AdamW follows the sign of what rounding leaves there.

    They are the biases of attention's keys (which add the same to all scores of a query), and the bias of the
    discriminator's head (which originals and reconstructions pull at alike while the hinge holds for all).
    """
    kept = {name: tensor for name, tensor in tensors.items() if "discriminator.head.bias" not in name}
    for name in kept:
        if "qkv.bias" in name and kept[name].numel() > 1 and kept[name].shape[-1] % 3 == 0:
            queries, _, values = kept[name].chunk(3, dim=-1)
            kept[name] = torch.cat([queries, values], dim=-1)
    return kept


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest one of any tensor, relative to that tensor's largest value."""
    assert set(first) == set(second) and len(first) > 5
    return max(
        float((first[name].double() - second[name].double()).abs().max())
        / max(float(first[name].double().abs().max()), 1e-30)
        for name in first
        if first[name].numel()
    )


def largest_and_share(one: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[float, float]:
    """The largest difference of any value that a loss depends on, and the share of values that differ by more
    than 1e-5.

    AdamW moves a weight by about the learning rate in the direction of its gradient's sign, however small
    the gradient is: beside an adversary, where many are tiny, rounding decides for a few of them.
    """
    assert set(one) == set(other)
    one, other = settled(one), settled(other)
    differences = torch.cat(
        [(one[name].double() - other[name].double()).abs().flatten() for name in one if one[name].numel()]
    )
    return float(differences.max()), float((differences > 1e-5).double().mean())
