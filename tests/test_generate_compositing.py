"""Pixels around an edit: holes filled for the encoder, canvases, seams."""

from __future__ import annotations

import torch

from nextscale.generate.compositing import fill_hole, paste, place_on_canvas, spread
from nextscale.generate.editing import box_mask


def test_values_spread_a_pixel_a_step() -> None:
    known = torch.zeros(1, 3, 5, dtype=torch.bool)
    known[:, :, 0] = True
    values, arrived = spread(torch.full((1, 3, 3, 5), 0.5), known, steps=2)
    assert arrived[0, 0, 1].tolist() == [0, 1, 2, 3, 3]
    assert torch.allclose(values[0, 0, 1], torch.tensor([0.5, 0.5, 0.5, 0, 0]))


def test_seams_fade_into_the_hole() -> None:
    keep = torch.ones(1, 1, 9)
    keep[..., 3:] = 0
    images, generated = torch.full((1, 3, 1, 9), 0.4), torch.zeros(1, 3, 1, 9)
    generated[..., :3] = 0.1  # 0.3 too dark where the truth is known
    pasted = paste(generated, images, keep, feather=2)[0, 0, 0]
    assert torch.allclose(pasted, torch.tensor([0.4, 0.4, 0.4, 0.2, 0.1, 0, 0, 0, 0]), atol=1e-6)
    assert torch.allclose(paste(generated, images, keep, feather=0)[0, 0, 0, 3:], torch.zeros(6))


def test_holes_are_filled_from_around_them() -> None:
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    keep = torch.from_numpy(box_mask((0.25, 0.25, 0.75, 0.75), (8, 8)))[None]
    filled = fill_hole(image, keep)
    assert torch.equal(filled[..., keep[0] == 1], image[..., keep[0] == 1])
    flat = fill_hole(torch.where(keep == 1, 0.3, -1.0).expand(1, 3, 8, 8), keep)
    assert torch.allclose(flat, torch.full_like(flat, 0.3), atol=1e-6)
    assert torch.equal(fill_hole(image, torch.zeros(1, 8, 8)), image)


def test_images_on_a_canvas() -> None:
    image = torch.rand(2, 3, 8, 8) * 2 - 1
    canvas, keep = place_on_canvas(image, (16, 16), cell=2, share=0.5, place=(0, 1))
    assert canvas.shape == (2, 3, 16, 16) and int(keep[0].sum()) == 64
    assert torch.equal(canvas[:, :, :8, 8:], image) and bool((keep[:, :8, 8:] == 1).all())
    assert 0 < canvas[:, :, 8:].std() < image.std()
    _, keep = place_on_canvas(image[..., :4, :], (16, 16), cell=2, share=0.5, place=(0.5, 0.5))
    assert bool((keep[:, 6:10, 4:12] == 1).all()) and int(keep[0].sum()) == 32
