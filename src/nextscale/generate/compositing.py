"""What happens to pixels before and after an edit: a hole is filled, an image comes onto a canvas, kept
pixels are put back.

Letters: B batch, C channels, H W pixels.
Special here: nothing that lies in a hole is ever used. Seams are hidden from the side of the hole: what the
image and its reconstruction differ by along the border is carried into the hole and fades there, so kept
pixels need no softening and stay as they are, to the bit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.scales import Size


def spread(values_BCHW: Tensor, known_BHW: Tensor, *, steps: int) -> tuple[Tensor, Tensor]:
    """Carry values from where they are known to where they are not, a pixel further with every step.

    Args:
        values_BCHW: float; read where known alone.
        known_BHW: bool.
        steps: how far at most.

    Returns:
        The values, 0 where they never arrived, and the step at which each pixel got its own: float
        (B, 1, H, W), 0 where it was known, ``steps + 1`` where none came.
    """
    known = known_BHW[:, None].to(values_BCHW.dtype)
    values = torch.where(known > 0, values_BCHW, 0)
    arrived = torch.where(known > 0, 0.0, float(steps + 1))
    for step in range(1, steps + 1):
        share = F.avg_pool2d(known, 3, stride=1, padding=1)
        mean = F.avg_pool2d(values, 3, stride=1, padding=1) / share.clamp_min(1e-6)
        new = (known == 0) & (share > 0)
        if not bool(new.any()):
            break
        values = torch.where(new, mean, values)
        arrived = torch.where(new, float(step), arrived)
        known = torch.where(new, 1.0, known)
    return values, arrived


def fill_hole(images_BCHW: Tensor, keep_BHW: Tensor) -> Tensor:
    """Hide what is not kept: its pixels are carried in from the kept ones around them.

    Args:
        images_BCHW: float in [-1, 1].
        keep_BHW: float in [0, 1]; pixels above 0.5 are kept as they are. An image without any stays as it is.
    """
    known_BHW = keep_BHW > 0.5
    empty_B = ~known_BHW.flatten(1).any(dim=1)
    known_BHW = known_BHW | empty_B[:, None, None]
    filled, _ = spread(images_BCHW, known_BHW, steps=max(images_BCHW.shape[-2:]))
    return filled


def paste(generated_BCHW: Tensor, images_BCHW: Tensor, keep_BHW: Tensor, *, feather: int) -> Tensor:
    """Put the kept pixels of the given images back over the generated ones.

    Args:
        generated_BCHW: float32 in [-1, 1].
        images_BCHW: the given images, likewise.
        keep_BHW: float in [0, 1], the share of the given image in each pixel; 1 gives it to the bit.
        feather: over how many pixels beyond the kept ones the difference along their border fades; 0 is off.

    Returns:
        float32 (B, 3, H, W) in [-1, 1].
    """
    keep = keep_BHW[:, None]
    under = generated_BCHW
    if feather:
        difference, arrived = spread(images_BCHW - generated_BCHW, keep_BHW == 1, steps=feather)
        under = (generated_BCHW + difference * (1 - arrived / (feather + 1))).clamp(-1, 1)
    return torch.where(keep == 1, images_BCHW, keep * images_BCHW + (1 - keep) * under)


def agree_with_small(generated_BCHW: Tensor, small_BCHW: Tensor) -> Tensor:
    """Change images so that they nearly shrink to given small ones: their difference is enlarged and added,
    three times over (iterative back-projection, Irani and Peleg 1991).

    Args:
        generated_BCHW: float32 in [-1, 1].
        small_BCHW: likewise, smaller; (1 or B, 3, H', W').

    Returns:
        float32 (B, 3, H, W) in [-1, 1].
    """
    size, small_size = generated_BCHW.shape[-2:], small_BCHW.shape[-2:]
    for _ in range(3):
        shrunk = F.interpolate(generated_BCHW, size=small_size, mode="bicubic", antialias=True)
        missing = F.interpolate(small_BCHW - shrunk, size=size, mode="bicubic")
        generated_BCHW = (generated_BCHW + missing).clamp(-1, 1)
    return generated_BCHW


def place_on_canvas(
    images_BCHW: Tensor, size: Size, *, cell: int, share: float, place: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Shrink images and place them on a larger canvas, whose rest is filled from their borders.

    Args:
        images_BCHW: float in [-1, 1].
        size: (H, W) of the canvas in pixels.
        cell: pixels along the side of a latent cell; sizes and places are whole cells.
        share: of the canvas's sides that the images take at most, in (0, 1); they keep their proportions, up
            to whole cells.
        place: (down, right), where they stand: 0 at the top or left, 1 at the bottom or right.

    Returns:
        The canvas float (B, 3, H, W), and what of it is image: float (B, H, W), 0 or 1.
    """
    cells = [length // cell for length in size]
    sides = images_BCHW.shape[-2:]
    scale = min(share * length / side for length, side in zip(size, sides, strict=True))
    kept = [min(max(1, round(scale * side / cell)), count) for side, count in zip(sides, cells, strict=True)]
    top, left = (
        cell * round(at * (count - part)) for at, count, part in zip(place, cells, kept, strict=True)
    )
    height, width = cell * kept[0], cell * kept[1]
    small = images_BCHW
    if tuple(small.shape[-2:]) != (height, width):
        small = F.interpolate(small, size=(height, width), mode="bicubic", antialias=True).clamp(-1, 1)
    canvas = images_BCHW.new_zeros(len(small), 3, *size)
    keep_BHW = images_BCHW.new_zeros(len(small), *size)
    canvas[:, :, top : top + height, left : left + width] = small
    keep_BHW[:, top : top + height, left : left + width] = 1
    return fill_hole(canvas, keep_BHW), keep_BHW
