"""``nextscale edit``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from nextscale import checkpoint
from nextscale.cli.edit_inputs import mask_from_file, read_picture
from nextscale.cli.output import check_new_folder
from nextscale.cli.rejection import fitting_classifier
from nextscale.cli.sample import load_model, sampling_options
from nextscale.data.transforms import fit_to_task
from nextscale.evaluate.likelihood import EditLikelihood
from nextscale.generate.editing import box_mask
from nextscale.generate.folder import model_digest
from nextscale.generate.generator import Generator
from nextscale.generate.provenance import EditRecord, pixels_digest, write_png
from nextscale.generate.rejection import EditScorer, draw_edits
from nextscale.generate.reproduce import in_batches, records
from nextscale.generate.request import Label, resolve_label
from nextscale.generate.settings import EditSettings
from nextscale.models import find_model
from nextscale.pixels import enlarge, grid
from nextscale.rng import check_seeds

#: Candidates that are drawn at a time.
_BATCH = 16


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Edit one image."""
    out = Path(options.out)
    check_new_folder(out)
    _check(options)
    generator = load_model(options)
    label: Label = None
    if options.label != "none":
        label = resolve_label(options.label, generator.class_names)
    size = generator.tokenizer.image_size
    image, box = read_picture(options.image), _box(options)
    keep = None if box is None else box_mask(box, size)
    if options.mask is not None:
        keep = mask_from_file(options.mask, image, size, image_path=options.image)
    given = fit_to_task(image, options.task, size)
    edit = {
        "from_scale": options.from_scale, "feather": options.feather, "share": options.share,
        "hide": None if options.hole is None else options.hole == "hidden",
        "paste": False if options.no_paste else None,
        "place": None if options.place is None else _numbers("--place", options.place, "y,x"),
    }  # fmt: skip
    own = {name: value for name, value in edit.items() if value is not None}
    settings = {**own, **sampling_options(options)}
    drawn = draw_edits(
        generator, given, label=label, seed=options.seed, candidates=options.candidates,
        score=_judge(options, generator), batch_size=_BATCH, mask=keep, task=options.task, **settings,
    )  # fmt: skip
    best = drawn.best
    record = {
        "model": options.model, "image": options.image, "mask": options.mask, "box": options.box,
        "task": options.task, "label": options.label, "seed": drawn.seeds[best], "edit": edit,
        "sampling": generator.sampling(sampling_options(options)), "best_by": _best_by(options),
        "candidates": [
            {"seed": seed, "score": score}
            for seed, score in zip(drawn.seeds, drawn.scores, strict=False)
        ],
        "dtype": str(generator.dtype).removeprefix("torch."),
    }  # fmt: skip
    carried = records(
        generator, [label] * len(drawn.seeds), list(drawn.seeds), places=in_batches(len(drawn.seeds), _BATCH),
        model_digest=model_digest(find_model(options.model)), sampling=sampling_options(options),
        edit=_edit_record(options, own, given, keep),
    )[best]  # fmt: skip
    with checkpoint.new_folder(out) as place:
        write_png(place / "edited.png", drawn.images[best], carried)
        _sheet(_shown(given, keep, size), drawn.images[best : best + 1]).save(place / "comparison.png")
        if drawn.scores:
            order = numpy.argsort(drawn.scores)[::-1]
            _sheet([], drawn.images[order]).save(place / "candidates.png")
        checkpoint.write_json(place / "settings.json", record)
    of = f" of {len(drawn.seeds)} drawn" if len(drawn.seeds) > 1 else ""
    print(f"1 image{of}: {out / 'edited.png'}")


def _check(options: argparse.Namespace) -> None:
    """Refuse what does not go together, before anything is loaded."""
    masked = options.task in ("inpaint", "replace")
    if masked and (options.mask is None) == (options.box is None):
        raise ValueError(
            f"--task {options.task} needs --mask or --box, one of them: it says where to generate"
        )
    if not masked and (options.mask or options.box):
        raise ValueError(f"--task {options.task} takes no --mask and no --box: leave them out")
    if options.task == "replace" and options.label == "none":
        raise ValueError("--task replace needs --label: what shall be there; without one, use --task inpaint")
    if options.candidates < 1:
        raise ValueError(f"--candidates {options.candidates} must be at least 1")
    if options.candidates == 1 and options.best_by:
        raise ValueError(f"--best-by {options.best_by} needs several --candidates to choose from")
    if options.best_by == "classifier" and options.label == "none":
        raise ValueError("--best-by classifier needs --label: the class to look for")
    check_seeds([options.seed])


def _best_by(options: argparse.Namespace) -> str | None:
    return (options.best_by or "likelihood") if options.candidates > 1 else None


def _numbers(option: str, text: str, form: str) -> tuple[float, ...]:
    """Numbers between commas, as many as ``form`` has."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != len(form.split(",")):
        raise ValueError(f"{option} {text!r}: expected {form}, numbers between commas")
    return values


def _box(options: argparse.Namespace) -> tuple[float, float, float, float] | None:
    if options.box is None:
        return None
    y0, x0, y1, x1 = _numbers("--box", options.box, "y0,x0,y1,x1")
    return y0, x0, y1, x1


def _edit_record(
    options: argparse.Namespace, edit: dict[str, Any], given: numpy.ndarray, keep: numpy.ndarray | None
) -> EditRecord:
    """What the result depends on besides what a sample does."""
    masked = keep is not None and options.mask is not None
    return EditRecord(
        task=options.task, settings=EditSettings(**edit), image_digest=pixels_digest(given),
        **({"mask_digest": pixels_digest(keep)} if masked and keep is not None else {}),
        **({"box": _box(options)} if options.box is not None else {}),
    )  # fmt: skip


def _judge(options: argparse.Namespace, generator: Generator) -> EditScorer | None:
    """Who says which candidate is the best."""
    by = _best_by(options)
    if by == "likelihood":
        return EditLikelihood(generator.tokenizer, generator.prior)
    if by is None:
        return None
    classifier = fitting_classifier(generator, option="--best-by classifier")
    classifier.to(generator.prior.position.device)
    return lambda result, labels_B: classifier.confidence(result.images_BCHW, labels_B)


def _shown(
    given: numpy.ndarray, keep: numpy.ndarray | None, size: tuple[int, int]
) -> list[numpy.ndarray]:  # fmt: skip
    """What stands beside the result: the image, and the image with its hole in grey."""
    image = Image.fromarray(given)
    if image.size != size[::-1]:  # pixels of a small image stay visible
        image = image.resize(size[::-1], Image.Resampling.NEAREST)
    whole = numpy.asarray(image)
    if keep is None:
        return [whole]
    holed = keep[..., None] * whole + (1 - keep[..., None]) * 128
    return [whole, holed.round().astype(numpy.uint8)]


def _sheet(before: Sequence[numpy.ndarray], after_BHWC: numpy.ndarray) -> Image.Image:
    images_BHWC = numpy.stack([*before, *after_BHWC])
    factor = max(1, 128 // images_BHWC.shape[1])
    return Image.fromarray(grid(enlarge(images_BHWC, factor), columns=min(len(images_BHWC), 8), gap=8))
