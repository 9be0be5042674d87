"""Editing: which tokens of a given image stay, scale by scale, while the others are drawn (paper, its part on
zero-shot generalization).

Letters: B batch, S scales, L tokens of all scales, H W pixels, h w latent cells.
Special here: an edit is a generation some of whose tokens are given. Everything is decided before it starts:
the tokens of the image, which of them are kept, and the pixels that come back over the result. At each scale
the mask is resized (bilinear, no corner alignment) and a cell is kept above 0.5, as in the released code,
which also keeps scales of at most three cells whole.
"""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple, TypeAlias, cast, get_args

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from nextscale.generate.compositing import agree_with_small, fill_hole, paste, place_on_canvas
from nextscale.generate.request import Forced, Sampling
from nextscale.generate.settings import EditSettings, Task
from nextscale.pixels import to_model
from nextscale.scales import ScaleSchedule
from nextscale.tokenizer.model import Tokenizer

#: An RGB picture, uint8 (H, W, 3) or (B, H, W, 3), or float (3, H, W) or (B, 3, H, W) in [-1, 1].
Picture: TypeAlias = Image.Image | numpy.ndarray | Tensor

#: Scales of at most this many cells are kept whole where a mask keeps anything.
_KEPT_WHOLE = 3
_WITH_MASK = ("inpaint", "replace")
#: The edit settings that have an effect on each task.
_KNOWN: dict[str, tuple[str, ...]] = {
    "inpaint": ("from_scale", "hide", "paste", "feather"),
    "replace": ("from_scale", "hide", "paste", "feather"),
    "outpaint": ("from_scale", "paste", "feather", "share", "place"),
    "variation": ("from_scale",),
    "upscale": ("from_scale", "paste"),
}


class Editing(Sampling, total=False):
    """Settings of one edit: those of sampling, and those of `EditSettings`; None is the task's own."""

    from_scale: int | None
    hide: bool | None
    paste: bool | None
    feather: int | None
    share: float | None
    place: tuple[float, float] | None


class Edit(NamedTuple):
    """A prepared edit."""

    forced: Forced
    images_BCHW: Tensor  #: the given images at the model's size, float32 in [-1, 1]
    keep_BHW: Tensor | None  #: float in [0, 1], the share of them that comes back; None: none does
    feather: int
    small_BCHW: Tensor | None  #: what the result shall shrink to; None: anything

    def finish(self, generated_BCHW: Tensor) -> Tensor:
        """What was generated, with the kept pixels put back: float32 (B, 3, H, W) in [-1, 1]."""
        if self.small_BCHW is not None:
            return agree_with_small(generated_BCHW, self.small_BCHW)
        if self.keep_BHW is None:
            return generated_BCHW
        return paste(generated_BCHW, self.images_BCHW, self.keep_BHW, feather=self.feather)


def split_settings(task: str, given: Editing) -> tuple[EditSettings, Sampling]:
    """Settings of an edit, and of the sampling in it.

    Raises:
        ValueError: no such task, a setting that has no effect on it, or a value out of range.
    """
    if task not in get_args(Task):
        near = difflib.get_close_matches(str(task), get_args(Task), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"task {task!r} is unknown: expected {', '.join(get_args(Task))}{hint}")
    own: dict[str, Any] = {}
    sampling: dict[str, Any] = {}
    for name, value in given.items():
        (own if name in EditSettings.model_fields else sampling)[name] = value
    own = {name: value for name, value in own.items() if value is not None}
    for name in own:
        if name not in _KNOWN[task]:
            tasks = ", ".join(known for known, names in _KNOWN.items() if name in names)
            raise ValueError(
                f"{name} would have no effect on task {task}: leave it out; it belongs to {tasks}"
            )
    if own.get("paste") is False and "feather" in own:
        raise ValueError(f"feather {own['feather']} would have no effect with paste False: leave it out")
    try:
        return EditSettings.model_validate(own), cast(Sampling, sampling)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{first['loc'][0]} {own[str(first['loc'][0])]!r}: {first['msg']}") from error


def prepare_edit(
    tokenizer: Tokenizer, picture: Picture, mask: Any, *, count: int, task: Task, settings: EditSettings
) -> Edit:
    """Decide what of some images stays.

    Args:
        tokenizer: of the model.
        picture: one for all images to make, or one for each.
        mask: see `Generator.edit`.
        count: B, images to make.
        task: what for.
        settings: of the edit.

    Raises:
        ValueError: images or masks of another size, type or range, or a mask where the task takes none.
    """
    device = tokenizer.quantizer.codebook.weight.device
    images_BCHW = as_images(picture, count).to(device)
    schedule, cell = tokenizer.schedule, tokenizer.settings.autoencoder.reduction
    if (mask is not None) != (task in _WITH_MASK):
        need = "needs a mask, 1 where the image is kept" if mask is None else "takes no mask: leave it out"
        raise ValueError(f"task {task} {need}; tasks with a mask: {', '.join(_WITH_MASK)}")
    small_BCHW = images_BCHW if task == "upscale" and settings.paste else None
    images_BCHW, keep_BHW, from_scale = _at_size(images_BCHW, tokenizer, task, settings)
    if settings.from_scale is not None:
        from_scale = settings.from_scale
    if from_scale is not None and from_scale > schedule.num_scales:
        raise ValueError(f"from_scale {from_scale} is out of range: expected 0 to {schedule.num_scales}")
    keep_Bhw = images_BCHW.new_zeros(1, *schedule.latent_size)
    if mask is not None:
        keep_BHW, keep_Bhw = as_masks(mask, tokenizer, count, device=device)
    elif keep_BHW is not None:
        keep_Bhw = _least_in_cells(keep_BHW, cell)
    seen_BCHW = images_BCHW
    if keep_BHW is not None and (task == "inpaint" if settings.hide is None else settings.hide):
        images_BCHW = images_BCHW.expand(max(len(images_BCHW), len(keep_BHW)), -1, -1, -1)
        seen_BCHW = fill_hole(images_BCHW, keep_BHW)
    tokens_BL = tokenizer.encode(seen_BCHW)
    kept_BL = kept_tokens(keep_Bhw, schedule, from_scale=from_scale)
    feather = settings.feather if settings.feather is not None else cell // 2
    return Edit(
        Forced(tokens_BL.expand(count, -1), kept_BL.expand(count, -1)),
        images_BCHW, keep_BHW if settings.paste else None, feather, small_BCHW,
    )  # fmt: skip


def _at_size(
    images_BCHW: Tensor, tokenizer: Tokenizer, task: Task, settings: EditSettings
) -> tuple[Tensor, Tensor | None, int | None]:
    """Images of the model's size, what of a canvas they are, and the scale that the task starts from."""
    size, num_scales = tokenizer.image_size, tokenizer.schedule.num_scales
    if task == "outpaint":  # coarse scales of the filled canvas give the surroundings their colours
        canvas_BCHW, keep_BHW = place_on_canvas(
            images_BCHW, size, cell=tokenizer.settings.autoencoder.reduction, share=settings.share,
            place=settings.place,
        )  # fmt: skip
        return canvas_BCHW, keep_BHW, min(2, num_scales - 1)
    if task == "upscale":
        known = known_scales(images_BCHW, tokenizer)
        return F.interpolate(images_BCHW, size=size, mode="bicubic").clamp(-1, 1), None, known
    if tuple(images_BCHW.shape[-2:]) != size:
        height, width = images_BCHW.shape[-2:]
        raise ValueError(
            f"expected an image of {size[0]} x {size[1]} pixels, given {height} x {width}: resize it, or "
            "use a model of that size"
        )
    return images_BCHW, None, (num_scales + 1) // 2 if task == "variation" else None


def kept_tokens(keep_Bhw: Tensor, schedule: ScaleSchedule, *, from_scale: int | None) -> Tensor:
    """Which tokens stay: bool (B, L).

    Args:
        keep_Bhw: float in [0, 1] at the size of the last scale.
        schedule: the scales.
        from_scale: coarser scales stay whole; None: those of at most three cells, where anything stays.
    """
    parts = []
    for scale, size in enumerate(schedule.sizes):
        share_B1hw = F.interpolate(keep_Bhw[:, None], size=size, mode="bilinear", align_corners=False)
        kept_BT = share_B1hw.flatten(1) > 0.5
        if from_scale is not None:
            kept_BT = kept_BT | (scale < from_scale)
        elif schedule.num_cells[scale] <= _KEPT_WHOLE:
            kept_BT = kept_BT | (keep_Bhw > 0.5).flatten(1).any(dim=1, keepdim=True)
        parts.append(kept_BT)
    return schedule.join(parts)


def known_scales(images_BCHW: Tensor, tokenizer: Tokenizer) -> int:
    """How many scales a small image determines: those with no more cells than it would have itself, at least
    the first.

    Raises:
        ValueError: it is not smaller than the model's images, or has other proportions.
    """
    (height, width), cell = tokenizer.image_size, tokenizer.settings.autoencoder.reduction
    rows, columns = images_BCHW.shape[-2:]
    if rows >= height or columns >= width or abs(rows * width - columns * height) > max(height, width):
        raise ValueError(
            f"task upscale needs images smaller than {height} x {width} pixels and of their proportions, "
            f"given {rows} x {columns}: crop or shrink them"
        )
    fits = [h * cell <= rows and w * cell <= columns for h, w in tokenizer.schedule.sizes]
    return max(1, fits.index(False))


def box_mask(box: tuple[float, float, float, float], size: tuple[int, int]) -> numpy.ndarray:
    """A mask that keeps everything outside a box: float32 (H, W), 0 in the box.

    Args:
        box: (y0, x0, y1, x1), fractions of the sides; rounded to whole pixels.
        size: (H, W).

    Raises:
        ValueError: fractions that are no box, or one without a pixel.
    """
    y0, x0, y1, x1 = box
    if not (0 <= y0 < y1 <= 1 and 0 <= x0 < x1 <= 1):
        raise ValueError(
            f"box {y0:g},{x0:g},{y1:g},{x1:g} is none: expected y0,x0,y1,x1 with 0 <= y0 < y1 <= 1 and "
            "0 <= x0 < x1 <= 1, fractions of the sides"
        )
    keep = numpy.ones(size, dtype=numpy.float32)
    rows, columns = (slice(round(a * n), round(b * n)) for a, b, n in ((y0, y1, size[0]), (x0, x1, size[1])))
    keep[rows, columns] = 0
    if keep.all():
        raise ValueError(
            f"box {y0:g},{x0:g},{y1:g},{x1:g} holds no pixel of {size[0]} x {size[1]}: enlarge it"
        )
    return keep


def as_images(picture: Picture, count: int) -> Tensor:
    """Pictures as a model reads them: float32 (1 or B, 3, H, W) in [-1, 1].

    Raises:
        ValueError: another shape, type, range or number of them.
    """
    if isinstance(picture, Image.Image):
        picture = numpy.asarray(picture.convert("RGB"))
    if isinstance(picture, numpy.ndarray):
        if picture.dtype != numpy.uint8 or picture.ndim not in (3, 4) or picture.shape[-1] != 3:
            raise ValueError(
                f"expected an image as uint8 (H, W, 3) or (B, H, W, 3), given {picture.dtype} {picture.shape}"
            )
        images_BCHW = to_model(picture.reshape(-1, *picture.shape[-3:]).copy())
    else:
        shape = tuple(picture.shape)
        if not picture.is_floating_point() or len(shape) not in (3, 4) or shape[-3] != 3:
            raise ValueError(
                f"expected an image as float (3, H, W) or (B, 3, H, W), given {picture.dtype} {shape}"
            )
        if not bool((picture.abs() <= 1).all()):
            raise ValueError("image values must lie in [-1, 1]: divide uint8 values by 127.5 and subtract 1")
        images_BCHW = picture.float().reshape(-1, *shape[-3:])
    if len(images_BCHW) not in (1, count):
        raise ValueError(f"{len(images_BCHW)} images for {count} labels: give one for all, or one per label")
    return images_BCHW


def as_masks(
    mask: Any, tokenizer: Tokenizer, count: int, *, device: torch.device
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A mask of pixels and one of cells from either: float32 (1 or B, H, W) and (1 or B, h, w) in [0, 1].

    A cell is kept as much as its least kept pixel.

    Raises:
        ValueError: another size, number or range.
    """
    keep = torch.as_tensor(mask).to(device, torch.float32)
    pixels, cells = tokenizer.image_size, tokenizer.schedule.latent_size
    if keep.ndim not in (2, 3) or tuple(keep.shape[-2:]) not in (pixels, cells):
        raise ValueError(
            f"expected a mask of {pixels[0]} x {pixels[1]} pixels or {cells[0]} x {cells[1]} cells, "
            f"one or one per image, given {tuple(keep.shape)}"
        )
    keep = keep.reshape(-1, *keep.shape[-2:])
    if len(keep) not in (1, count):
        raise ValueError(f"{len(keep)} masks for {count} images: give one for all, or one per image")
    if not bool(((keep >= 0) & (keep <= 1)).all()):
        raise ValueError("mask values must lie in [0, 1]: 1 keeps, 0 generates anew")
    cell = tokenizer.settings.autoencoder.reduction
    if tuple(keep.shape[-2:]) == pixels:
        return keep, _least_in_cells(keep, cell)
    return keep.repeat_interleave(cell, dim=1).repeat_interleave(cell, dim=2), keep


def _least_in_cells(keep_BHW: Tensor, cell: int) -> Tensor:
    return -F.max_pool2d(-keep_BHW[:, None], cell)[:, 0]
