"""The whole way, small: 32 pictures are learned by heart, then asked for by their labels.

Special here: nothing is left to chance (no class dropout, no guidance, greedy), so label i gives picture i.
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
from nextscale.evaluate.likelihood import likelihood_scores
from nextscale.evaluate.similarity import psnr
from nextscale.pixels import to_model, to_uint8
from nextscale.train import loop as train_loop
from nextscale.train.logs import read_log
from nextscale.train.run import train_run
from nextscale.train.settings import PriorRun, TokenizerRun

COUNT = 32
CASES: dict[str, dict[str, Any]] = {
    "square": {
        "size": (16, 16), "sizes": ((1, 1), (2, 2), (4, 4)), "batch": 32, "steps": (110, 110),
        "autoencoder": {"base_dim": 16, "multipliers": (1, 2, 2)}, "quality": 14,
    },
    "wide": {
        "size": (32, 48), "sizes": ((1, 1), (2, 3), (4, 6)), "batch": 16, "steps": (60, 140),
        "autoencoder": {"base_dim": 8, "multipliers": (1, 1, 2, 2)}, "quality": 11,
    },
}  # fmt: skip


def _train(case: dict[str, Any], folder: Path) -> Generator:
    source = str(write_pictures(folder / "pictures", COUNT, case["size"], num_classes=COUNT))
    optimizer = {"warmup_share": 0.05, "weight_decay": 0.0, "clip_norm": 1.0, "final_lr_ratio": 0.05}
    loop = {"precision": "float32", "ema_decay": 0.9, "log_every": 20}
    common: dict[str, Any] = {"data": {"source": source, "validation": source, "enlarge": 1.0}}
    common["ledger"] = {"fingerprint": False}  # a function is replaced
    said: list[str] = []
    tokenizer = TokenizerRun(
        schedule={"sizes": case["sizes"]},
        tokenizer={
            "autoencoder": {**case["autoencoder"], "num_res_blocks": 1, "norm_groups": 4, "attention": False},
            "quantizer": {"vocab_size": 64, "code_dim": 8, "num_phis": 2},
        },
        optimizer={**optimizer, "base_lr": 0.768 / case["batch"], "decay": "cosine"},
        loop={**loop, "batch_size": case["batch"], "num_steps": case["steps"][0]},
        **common,
    )
    train_run(tokenizer, folder / "tokenizer", device="cpu", say=said.append, progress=False)
    prior = PriorRun(
        tokenizer_from=str(folder / "tokenizer" / "model"),
        prior={
            "depth": 2, "model_dim": 64, "num_heads": 2, "gate_init": 0.1,
            "drop_path": 0.0, "class_dropout": 0.0,
        },
        cache_views=1,
        optimizer={**optimizer, "base_lr": 0.024},
        loop={**loop, "batch_size": COUNT, "num_steps": case["steps"][1]},
        sampling={"guidance": 0.0, "top_k": 1},
        **common,
    )  # fmt: skip
    train_run(prior, folder / "prior", device="cpu", say=said.append, progress=False)
    told = [line for line in said if "few codes" not in line]  # 32 images cannot use many
    assert len(told) == 2 and all(line.startswith("32 images of 32 classes") for line in told)
    return Generator.load(folder / "prior" / "model")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_pictures_learned_by_heart_come_back(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_loop, "draw_curves", lambda *_: None)
    case = CASES[name]
    generator = _train(case, tmp_path)
    source = open_source(tmp_path / "pictures")
    pixels, labels = next(evaluation_batches(source, size=case["size"], batch_size=COUNT))
    tokens = generator.tokenizer.encode(to_model(pixels))
    assert labels.tolist() == list(range(COUNT)) and len(tokens.unique(dim=0)) == COUNT
    reconstructed = to_uint8(generator.tokenizer.decode(tokens))
    assert psnr(reconstructed, pixels).mean() > case["quality"]

    result = generator(list(generator.class_names), seeds=range(COUNT))
    assert result.tokens_BL is not None
    assert (result.tokens_BL == tokens).float().mean() > 0.95
    assert numpy.minimum(psnr(result.images, reconstructed), 99).mean() > 35
    nearest = [
        psnr(reconstructed, numpy.broadcast_to(image, pixels.shape)).argmax() for image in result.images
    ]
    assert (numpy.array(nearest) == labels).mean() > 0.9

    scores = likelihood_scores(generator.tokenizer, generator.prior, source, classify=True)
    assert scores["classification"]["accuracy"] > 0.9 and scores["bits_per_token"] < 1

    for stage, left in (("tokenizer", 0.9), ("prior", 0.4)):
        records = read_log(tmp_path / stage / "log.jsonl")
        losses = [record["loss"] for record in records if record["kind"] == "train"]
        assert losses[-1] < left * losses[0]
