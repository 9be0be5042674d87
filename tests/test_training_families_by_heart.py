"""The two rival families learn 32 pictures by heart as the next-scale prior does, then give them back.

Special here: one tokenizer of one scale for both. Diffusion is left to chance in nothing but its first noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest

from models_for_tests import write_pictures
from nextscale import Generator
from nextscale.data.loader import evaluation_batches
from nextscale.data.sources import open_source
from nextscale.evaluate.reconstruction import psnr
from nextscale.pixels import to_model, to_uint8
from nextscale.train.logs import read_log
from nextscale.train.settings import PriorRun, TokenizerRun
from runs_for_tests import train_quietly

pytestmark = pytest.mark.slow
COUNT, SIZE = 32, (16, 16)
OPTIMIZER = {"warmup_share": 0.05, "weight_decay": 0.0, "clip_norm": 1.0, "final_lr_ratio": 0.05}
LOOP = {"precision": "float32", "ema_decay": 0.9, "log_every": 20, "batch_size": COUNT}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, each a class of its own, and a tokenizer that has seen them."""
    home = tmp_path_factory.mktemp("by-heart")
    write_pictures(home / "pictures", COUNT, SIZE, num_classes=COUNT)
    autoencoder = {
        "base_dim": 16, "multipliers": (1, 2, 2), "num_res_blocks": 1, "norm_groups": 4, "attention": False,
    }  # fmt: skip
    run = TokenizerRun(
        schedule={"sizes": ((4, 4),)},
        tokenizer={
            "autoencoder": autoencoder,
            "quantizer": {"vocab_size": 64, "code_dim": 8, "num_phis": 1},
        },
        optimizer={**OPTIMIZER, "base_lr": 0.024, "decay": "cosine"}, loop={**LOOP, "num_steps": 110},
        data=_data(home), ledger={"fingerprint": False},
    )  # fmt: skip
    train_quietly(run, home / "tokenizer")
    return home


def _data(home: Path) -> dict[str, Any]:
    return {"source": str(home / "pictures"), "validation": str(home / "pictures"), "enlarge": 1.0}


def _train(kind: str, home: Path, *, num_steps: int, **settings: Any) -> Generator:
    run = PriorRun(
        tokenizer_from=str(home / "tokenizer" / "model"),
        prior={
            "kind": kind, "depth": 2, "model_dim": 64, "num_heads": 2, "drop_path": 0.0, "class_dropout": 0.0,
            "gate_init": 0.1,
        },
        optimizer={**OPTIMIZER, "base_lr": 0.024}, loop={**LOOP, "num_steps": num_steps}, data=_data(home),
        ledger={"fingerprint": False}, **settings,
    )  # fmt: skip
    train_quietly(run, home / kind)
    return Generator.load(home / kind / "model")


def _pixels(home: Path) -> numpy.ndarray:
    pixels, labels = next(evaluation_batches(open_source(home / "pictures"), size=SIZE, batch_size=COUNT))
    assert labels.tolist() == list(range(COUNT))
    return pixels


def _found(images: numpy.ndarray, among: numpy.ndarray) -> float:
    """The share of images that are most like the one of their own number."""
    nearest = [psnr(among, numpy.broadcast_to(image, among.shape)).argmax() for image in images]
    return float((numpy.array(nearest) == numpy.arange(COUNT)).mean())


def _fell(home: Path, kind: str) -> float:
    losses = [r["loss"] for r in read_log(home / kind / "log.jsonl") if r["kind"] == "train"]
    return losses[-1] / losses[0]


def test_next_token(home: Path) -> None:
    generator = _train(
        "next_token", home, num_steps=110, cache_views=1, sampling={"guidance": 0.0, "top_k": 1}
    )
    tokens = generator.tokenizer.encode(to_model(_pixels(home)))
    assert len(tokens.unique(dim=0)) == COUNT
    result = generator(list(generator.class_names), seeds=range(COUNT))
    assert result.tokens_BL is not None
    assert (result.tokens_BL == tokens).float().mean() > 0.95
    assert _found(result.images, to_uint8(generator.tokenizer.decode(tokens))) > 0.9
    assert _fell(home, "next_token") < 0.4


def test_diffusion(home: Path) -> None:
    generator = _train("diffusion", home, num_steps=600, sampling={"guidance": 0.0})
    features = generator.tokenizer.features(to_model(_pixels(home)))
    goals = to_uint8(generator.tokenizer.decode_features(features))
    for sampler, num_steps in (("ddim", 50), ("ddpm", 250)):
        result = generator(
            list(generator.class_names), seeds=range(COUNT), sampler=sampler, num_steps=num_steps
        )
        assert psnr(result.images, goals).mean() > 20
        assert _found(result.images, goals) > 0.9
    assert _fell(home, "diffusion") < 0.4
