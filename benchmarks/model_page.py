"""A model's page: what it makes, what it was made from, and what it costs.

    python benchmarks/model_page.py cifar10-tiny cifar10/test.parquet \
        --runs runs/cifar10-tiny-tokenizer runs/cifar10-tiny --scores scores/*.json --neighbours neighbours \
        --notes notes.md --out docs/models

writes NAME.md and a folder NAME of pictures. Scores come from ``nextscale evaluate --out``, the nearest
training images from ``nextscale neighbours``, curves, first losses and seconds from the folders of the runs,
sizes from the model. The notes stand at the head: what the data are, under which terms, and the
commands of it all, in words. Without VALIDATION no real image is shown, nor what was made of one: some terms
forbid it. ``--judge`` names the folder of a classifier that chooses the failures in place of the bundled one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import model_pictures as pictures

from nextscale.data.sources import open_source
from nextscale.features.classifier import BUNDLED_CLASSIFIER, load_classifier
from nextscale.generate.card import card_body, read_scores, score_lines
from nextscale.generate.folder import model_digest
from nextscale.generate.generator import Generator
from nextscale.integrity.statement import read_statement
from nextscale.models import find_model
from nextscale.prior.cost import cost
from nextscale.train.logs import read_log

_FIRST_STEPS = 200
_BATCHES = (1, 8, 64)
_MOST_CLASSES = 10
#: File, title and what it shows.
_PICTURES = {
    "samples": (
        "Samples",
        "Uncurated: seeds count up from 0, the model's own settings. From the top: {listed}.",
    ),
    "failures": (
        "Failures",
        "Of the samples above the two of each class that the classifier believes least to be of it.",
    ),
    "strips": ("Coarse to fine", "One image of each class after each scale."),
    "reconstructions": (
        "Reconstructions",
        "Validation images, the first of each class, above what their tokens hold of them.",
    ),
    "fillings": ("A hole filled", "The same images, the hole, and two fillings with their class given."),
    "surroundings": ("Surroundings", "The same, smaller, and what is made around them."),
}


def main() -> None:
    """Write the page."""
    options = _options()
    home = find_model(options.model)
    generator = Generator.load(home)
    folder = options.out / options.name
    folder.mkdir(parents=True, exist_ok=True)
    lines = [*_head(options, generator), ""]
    lines += [*_shown(options, generator, folder), ""]
    lines += [*_scores(options.scores), ""]
    if options.neighbours:
        shown = folder if options.validation else None
        lines += [*_neighbours(options.neighbours, shown, options.name), ""]
    for run in options.runs:
        lines += [*_run(run, folder, options.name), ""]
    lines += _sizes(home, generator)
    (options.out / f"{options.name}.md").write_text("\n".join(lines) + "\n")
    print(options.out / f"{options.name}.md")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="name or folder")
    parser.add_argument(
        "validation", nargs="?", help="images that it never saw; none: no real image is shown"
    )
    parser.add_argument("--name", help="of the page; by default the model's")
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="folders of the runs that made it")
    parser.add_argument("--scores", type=Path, nargs="*", default=[], help="scores.json of evaluate --out")
    parser.add_argument("--neighbours", type=Path, help="folder that neighbours --out wrote")
    parser.add_argument("--judge", type=Path, default=BUNDLED_CLASSIFIER, help="folder of a classifier")
    parser.add_argument("--notes", type=Path, help="Markdown: the data, their terms, the commands")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.name = options.name or Path(options.model).name
    return options


def _head(options: argparse.Namespace, generator: Generator) -> list[str]:
    notes = options.notes.read_text().rstrip().splitlines() if options.notes else []
    body = [
        line.replace("this folder, or hub:owner/name", options.name) for line in card_body(generator.settings)
    ]
    return [f"# {options.name}", *body[1:], "", *notes]


def _shown(options: argparse.Namespace, generator: Generator, folder: Path) -> list[str]:
    """Every picture, and what it is."""
    names = generator.class_names
    classes = range(min(_MOST_CLASSES, len(names)))
    listed = ", ".join(names[label] for label in classes)
    shown = dict(_PICTURES)
    images = pictures.samples(generator, classes, folder / "samples.png")
    pictures.strips(generator, classes, folder / "strips.png")
    if options.validation:
        real, labels = pictures.first_of_each_class(
            open_source(options.validation), generator.tokenizer.image_size
        )
        pictures.reconstructions(generator, real, folder / "reconstructions.png")
        pictures.fillings(generator, real, labels, folder / "fillings.png")
        pictures.surroundings(generator, real, labels, folder / "surroundings.png")
    else:
        shown = {name: shown[name] for name in ("samples", "failures", "strips")}
    if not pictures.failures(images, classes, folder / "failures.png", load_classifier(options.judge)):
        del shown["failures"]
    lines: list[str] = []
    for name, (title, text) in shown.items():
        lines += [
            f"## {title}",
            "",
            text.format(listed=listed),
            "",
            f"![{title}]({options.name}/{name}.png)",
            "",
        ]
    return lines[:-1]


def _scores(files: Sequence[Path]) -> list[str]:
    lines = ["## Scores", ""] if files else []
    for file in files:
        about = read_scores(file)
        lines += [f"Against {about.dataset}:", "", *score_lines(about), ""]
    return lines[:-1]


def _neighbours(found: Path, folder: Path | None, name: str) -> list[str]:
    """What was counted, and the picture, if there is a folder for it."""
    scores = json.loads((found / "scores.json").read_text())
    told = ", ".join(f"{key} {value:.4g}" for key, value in scores.items() if isinstance(value, float))
    lines = [
        "## Nearest training images", "",
        f"Of {scores['num_samples']} samples those that come nearest to one of {scores['num_training']:,} "
        f"training images, each with its nearest ones: {told}.",
    ]  # fmt: skip
    if folder is not None:
        shutil.copyfile(found / "neighbours.png", folder / "neighbours.png")
        lines += ["", f"![Samples beside their nearest training images]({name}/neighbours.png)"]
    return lines


def _run(run: Path, folder: Path, name: str) -> list[str]:
    """Inputs, seconds, first losses and curves of one training."""
    statement = read_statement(run / "model")
    parameters = statement.definition.externalParameters
    marks = {"prior": "prior", "drawn_share": "decoder"}
    kind = next((kind for mark, kind in marks.items() if mark in parameters), "tokenizer")
    records = read_log(run / "log.jsonl")
    steps = [record for record in records if record["kind"] == "train"]
    loop = parameters["loop"]
    batch = loop["batch_size"]
    seconds = sum(
        (record["step"] - before) * batch / record["images_per_second"]
        for record, before in zip(steps, [0, *(record["step"] for record in steps)], strict=False)
    )
    inputs = [
        f"{item.name} ({', '.join(f'{key} {value[:16]}' for key, value in item.digest.items())})"
        for item in statement.definition.resolvedDependencies
        if not item.uri.startswith("pkg:")
    ]
    shutil.copyfile(run / "curves.png", folder / f"curves-{kind}.png")
    last = next((record for record in reversed(records) if record["kind"] == "evaluate"), {})
    rate = statistics.median(record["images_per_second"] for record in steps)
    told = ", ".join(f"{key} {value:.4g}" for key, value in last.items() if key not in ("kind", "step"))
    return [
        f"## Training of the {kind}", "",
        f"{steps[-1]['step']:,} steps of {batch} images, seed {loop['seed']}, {loop['precision']}: "
        f"{seconds / 60:.0f} minutes at {rate:.0f} images/s.",
        "", *(f"- {text}" for text in inputs), "",
        "| step | loss |", "|---|---|",
        *(f"| {record['step']} | {record['loss']} |" for record in steps if record["step"] <= _FIRST_STEPS),
        "", f"On validation images at the end: {told}.",
        "", f"![Curves]({name}/curves-{kind}.png)",
    ]  # fmt: skip


def _sizes(home: Path, generator: Generator) -> list[str]:
    """Bytes, operations and seconds."""
    settings = generator.settings
    assert settings.prior is not None
    quantizer = settings.tokenizer.quantizer
    of_prior = cost(
        settings.prior, settings.schedule, vocab_size=quantizer.vocab_size, code_dim=quantizer.code_dim,
        num_classes=len(settings.class_names),
    )  # fmt: skip
    files = [file for file in sorted(home.iterdir()) if file.suffix == ".safetensors"]
    tokenizer = sum(parameter.numel() for parameter in generator.tokenizer.parameters())
    lines = ["## Sizes and times", "", "| | |", "|---|---|"]
    lines += [f"| {file.name} | {file.stat().st_size / 2**20:.1f} MiB |" for file in files]
    lines += [
        f"| parameters | tokenizer {tokenizer:,}, prior {of_prior.parameters:,} |",
        f"| GFLOPs of the prior, an image | {of_prior.forward_flops / 1e9:.3g}, in training "
        f"{of_prior.training_flops / 1e9:.3g} |",
        f"| digest | {model_digest(home)[:16]} |",
    ]  # fmt: skip
    for batch in _BATCHES:
        labels = [place % len(settings.class_names) for place in range(batch)]
        times = []
        for turn in range(4):
            start = time.perf_counter()
            generator(labels, seeds=range(batch))
            if turn:
                times.append(time.perf_counter() - start)
        lines.append(f"| {batch} images | {statistics.median(times):.3g} s |")
    return lines


if __name__ == "__main__":
    main()
