"""Neon, negative extrapolation from self-training: away from what a model's own samples make of it.

    nextscale sample MODEL --per-label 500 --format parquet --out own
    nextscale train prior RECIPE --data.source own --tokenizer_from MODEL --init MODEL --out tuned
    python benchmarks/neon.py MODEL tuned/model --weights 0.5 1.0 1.5 --out runs/neon

(a short training: ``--loop.num_steps 200`` or so) writes a model for each weight w, whose prior is (1 + w)
times the model's minus w times the tuned one's; the tokenizer stays. ``nextscale evaluate`` says which of
them is the best, if any is better.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from nextscale.generate.generator import Generator


def extrapolated(base: dict[str, Tensor], tuned: dict[str, Tensor], weight: float) -> dict[str, Tensor]:
    """Tensors of one name each; ValueError when the two are not of one shape."""
    if base.keys() != tuned.keys() or any(base[name].shape != tuned[name].shape for name in base):
        raise ValueError("the two priors are of different shape: the second must be trained from the first")
    return {name: torch.lerp(value, tuned[name], -weight) for name, value in base.items()}


def main() -> None:
    """Write the models."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("tuned", help="the same after a short training on its own samples")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.5, 1.0, 1.5])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    base = Generator.load(options.model).prior.state_dict()
    tuned = Generator.load(options.tuned).prior.state_dict()
    for weight in options.weights:
        moved = Generator.load(options.model)
        moved.prior.load_state_dict(extrapolated(base, tuned, weight))
        moved.save(options.out / f"weight-{weight:g}")
        print(options.out / f"weight-{weight:g}")


if __name__ == "__main__":
    main()
