"""``nextscale sample --format``: many images into many files, by one process or several."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, cast

import torch

from nextscale import __version__
from nextscale.cli.output import one_voice
from nextscale.cli.sample import sampling_options, wanted
from nextscale.distributed import Distributed, joined
from nextscale.export.shards import ShardPlan, write_shards
from nextscale.generate.folder import model_digest
from nextscale.generate.generator import Generator
from nextscale.generate.request import Sampling, build_request
from nextscale.integrity.signatures import find_trusted_model
from nextscale.rng import check_seeds
from nextscale.train.run_folder import claimed_by_first
from nextscale.train.stopping import Stopped, stop_requests

_SHARD_SIZE = 1000


def run(options: argparse.Namespace) -> None:
    """Draw shards; run again to go on."""
    for name in ("png", "npz", "keep_best"):
        if getattr(options, name):
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} has no effect on --format {options.format}: leave it out")
    size = _SHARD_SIZE if options.shard_size is None else options.shard_size
    if size < 1:
        raise ValueError(f"--shard-size {size} must be at least 1")
    out = Path(options.out)
    with joined(options.device) as ranks, one_voice(ranks):
        with ranks.together():
            home = find_trusted_model(options.model, options.verify_with)
            generator = Generator.load(home, device=ranks.device, dtype=options.dtype)
            labels, seeds = wanted(options, generator.class_names)
            plan = ShardPlan(
                labels, seeds, sampling_options(options), smooth=options.smooth, batch=options.batch,
                shard_size=size, format=options.format, model_digest=model_digest(home),
            )  # fmt: skip
            _check(plan, generator)
        with claimed_by_first(out, _description(options, plan, generator), ranks):
            _draw(generator, plan, out, ranks)


def _check(plan: ShardPlan, generator: Generator) -> None:
    """Refuse settings before a folder belongs to them. Raises ValueError."""
    check_seeds(plan.seeds)
    build_request(
        plan.labels[:1], plan.seeds[:1], generator.settings, overrides=cast(Sampling, dict(plan.sampling)),
        smooth=plan.smooth, device=generator.prior.position.device,
    )  # fmt: skip


def _draw(generator: Generator, plan: ShardPlan, out: Path, ranks: Distributed) -> None:
    with stop_requests(alone=ranks.world_size == 1) as request:
        whole, finished = write_shards(
            generator, plan, out, ranks=ranks, stop=lambda: bool(request.votes().any())
        )
    if not finished:
        if ranks.is_first:
            sys.stderr.write(
                f"nextscale: stopped with {whole} of {len(plan.starts)} shards; run the same command again "
                "to go on\n"
            )
        raise SystemExit(Stopped.EXIT_CODE)
    if ranks.is_first:
        print(f"{len(plan.labels)} images in {whole} shards: {out}")


def _description(options: argparse.Namespace, plan: ShardPlan, generator: Generator) -> dict[str, Any]:
    """All that the bytes of the shards depend on, but not the number of processes."""
    return {
        "made_by": "nextscale sample", "nextscale": __version__, "torch": str(torch.__version__),
        "device": generator.prior.position.device.type,
        "dtype": str(generator.dtype).removeprefix("torch."), "model_digest": plan.model_digest,
        "labels": list(options.labels), "per_label": options.per_label, "seeds": options.seeds,
        "seed": options.seed, "smooth": plan.smooth, "sampling": generator.sampling(plan.sampling),
        "batch": plan.batch, "format": plan.format, "shard_size": plan.shard_size,
    }  # fmt: skip
