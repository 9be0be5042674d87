"""``nextscale tokenize``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nextscale import checkpoint
from nextscale.config import build
from nextscale.data.settings import DataSettings
from nextscale.data.sources import hold_out, open_source
from nextscale.data.token_cache import describe
from nextscale.data.tokenizing import make_cache
from nextscale.distributed import choose_device, place
from nextscale.generate.folder import load_tokenizer, read_settings
from nextscale.models import find_model
from nextscale.train.settings import LoopSettings


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Keep the tokens of some views of every image, for training priors."""
    given = {
        "source": options.source, "flip": options.flip, "enlarge": options.enlarge,
        "num_workers": options.workers, "validation_share": options.validation_share,
    }  # fmt: skip
    data = build(
        DataSettings, {name: value for name, value in given.items() if value is not None}, source="tokenize"
    )
    if options.batch < 1:
        raise ValueError(f"--batch {options.batch} must be at least 1")
    if options.seed is not None and not data.flip and data.enlarge == 1:
        raise ValueError(
            f"--seed {options.seed} would have no effect without --flip and with --enlarge 1: leave it out"
        )
    home = find_model(options.model)
    tokenizer = place(load_tokenizer(home, read_settings(home)), choose_device(options.device))
    source = open_source(options.source)
    if options.validation_share is not None:
        source, _ = hold_out(source, data.validation_share)
    made_from = describe(
        source, data, held_out=options.validation_share, tokenizer=tokenizer,
        tokenizer_sha256=checkpoint.digest(home / "tokenizer.safetensors"), views=options.views,
        seed=LoopSettings().seed if options.seed is None else options.seed, precision=options.precision,
    )  # fmt: skip
    cache = make_cache(
        Path(options.out), source=source, tokenizer=tokenizer, made_from=made_from, batch_size=options.batch,
        num_workers=data.num_workers, progress=not options.quiet and sys.stderr.isatty(),
    )  # fmt: skip
    num_views, num_samples, num_tokens = cache.tokens_VNL.shape
    print(
        f"{num_samples} images of {len(cache.class_names)} classes, {num_views} views, {num_tokens} tokens "
        f"each, {cache.tokens_VNL.nbytes / 2**20:.1f} MiB: {options.out}"
    )
