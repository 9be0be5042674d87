"""What each option of the tokenizer's training is worth: one short training per row, scored alike.

    python benchmarks/tokenizer_ablation.py cifar10/train.parquet cifar10/test.parquet --out runs/ablation

Rows have equal steps, batches and sizes and differ in the named options alone; a row that is given twice with
another seed says how much chance there is in a difference. Run it again to go on: finished rows are kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nextscale import checkpoint
from nextscale.config import build, merge, parse_overrides
from nextscale.data.sources import Source, open_source
from nextscale.distributed import choose_device
from nextscale.evaluate.reconstruction import reconstruction_scores
from nextscale.features.extractor import load_extractor
from nextscale.generate.folder import load_tokenizer, read_settings
from nextscale.recipes import read_recipe
from nextscale.train.run import train_run
from nextscale.train.settings import TokenizerRun

_ADVERSARIAL = "--losses.adversarial 0.1 --discriminator.start 0.2 --discriminator.warmup_share 0.05"
_EMA, _ROTATION, _DROPOUT = "--codes.ema_decay 0.99", "--codes.gradient rotation", "--codes.scale_dropout 0.1"
_PERCEPTUAL = "--losses.perceptual 0.1"

#: Name of a row -> what it adds to the recipe without running means and perceptual loss, where dead codes are
#: reset and nothing else.
ROWS = {
    "plain": "--losses.reset_after 0",
    "reset": "",
    "EMA": _EMA,
    "rotation": _ROTATION,
    "quantiser dropout": _DROPOUT,
    "perceptual": _PERCEPTUAL,
    "adversarial": _ADVERSARIAL,
    "all": f"{_EMA} {_ROTATION} {_DROPOUT} {_PERCEPTUAL} {_ADVERSARIAL}",
    "one scale": "--schedule.sizes [[8,8]] --tokenizer.quantizer.num_phis 1 "
    "--tokenizer.quantizer.phi_ratio 0",
    "EMA and perceptual": f"{_EMA} {_PERCEPTUAL}",
    "reset, seed 1": "--loop.seed 1",
}


def main() -> None:
    """Train what is missing, score it, and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="images to train on: folder or .parquet")
    parser.add_argument("validation", help="images to score on")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--recipe", default="cifar10-tiny", help="recipe that the rows change")
    parser.add_argument("--steps", type=int, default=800, help="steps of each row")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), help="which rows")
    parser.add_argument("--device", help="cpu, cuda, ...")
    options = parser.parse_args()
    print("| row | PSNR, dB | SSIM | rFD-CIFAR | codes used per scale |\n|---|---|---|---|---|", flush=True)
    for name in options.rows:
        print(_line(name, _scores(name, options)), flush=True)


def _scores(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Of one row, from its folder or from a training now."""
    folder: Path = options.out / name.replace(",", "").replace(" ", "-")
    kept = folder / "ablation.json"
    if kept.exists():
        scores: dict[str, float] = json.loads(kept.read_text())
        return scores
    common = (
        f"--codes.ema_decay 0 --losses.perceptual 0 --loop.num_steps {options.steps} "
        f"--loop.evaluate_every {options.steps}"
    )
    changes = merge(
        parse_overrides(f"{common} {ROWS[name]}".split(), TokenizerRun),
        {"data": {"source": options.source, "validation": options.validation}},
    )
    run = build(TokenizerRun, merge(read_recipe(options.recipe, "tokenizer"), changes), source=options.recipe)
    if not (folder / "model" / "config.json").exists():
        train_run(run, folder, device=options.device, say=lambda line: None)
    scores = _score(folder / "model", open_source(options.validation), options.device)
    checkpoint.write_json(kept, scores)
    return scores


def _score(model: Path, source: Source, device: str | None) -> dict[str, float]:
    chosen = choose_device(device)
    tokenizer = load_tokenizer(model, read_settings(model)).to(chosen).eval()
    return reconstruction_scores(tokenizer, source, extractor=load_extractor("cifar", device=chosen))


def _line(name: str, scores: dict[str, float]) -> str:
    used = [f"{value:.0f}" for key, value in scores.items() if key.startswith("codes_used_")]
    distance = next(value for key, value in scores.items() if "FD-CIFAR" in key)
    return f"| {name} | {scores['psnr']:.2f} | {scores['ssim']:.3f} | {distance:.2f} | {' '.join(used)} |"


if __name__ == "__main__":
    main()
