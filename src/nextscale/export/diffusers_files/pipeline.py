"""A diffusers pipeline around a nextscale model; needs the packages nextscale and diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import nn

_SEEDS = 2**63


class NextscalePipeline(DiffusionPipeline):
    """Makes images of classes. Each depends on its seed, label and settings alone.

    Args:
        model: a `NextscaleModel`.
    """

    model: Any

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.register_modules(model=model)  # type: ignore[attr-defined]

    @torch.no_grad()
    def __call__(
        self, class_labels: int | str | Sequence[int | str | None] | None = None, *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seeds: Sequence[int] | None = None, guidance_scale: float | None = None,
        num_inference_steps: int | None = None, output_type: str = "pil", return_dict: bool = True,
        **settings: Any,
    ) -> ImagePipelineOutput | tuple[Any]:  # fmt: skip
        """Make one image per class label.

        Args:
            class_labels: numbers or names of classes, or one of them; None is no class in particular.
            generator: seeds are drawn from it, or the first one of each in a list; without seeds alone.
            seeds: one per image, as nextscale takes them; None and no generator: chosen at random.
            guidance_scale: classifier-free guidance as nextscale counts it, 0 is off; None: the model's own.
            num_inference_steps: of diffusion models alone; None: 50.
            output_type: "pil", "np" or "pt": float32 (B, H, W, 3) or (B, 3, H, W) in [0, 1].
            return_dict: False gives a tuple.
            settings: of sampling, as `nextscale.Generator` takes them: top_k, top_p, temperature, ...

        Raises:
            ValueError: a value out of its range, or a setting that has no effect on this model.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type {output_type!r} is unknown: expected pil, np or pt")
        one = class_labels is None or isinstance(class_labels, int | str)
        labels: list[Any] = [class_labels] if one else list(class_labels)  # type: ignore[arg-type]
        if generator is not None and seeds is not None:
            raise ValueError("seeds and generator both say which images: give one of them")
        chosen = list(seeds) if seeds is not None else _draw_seeds(generator, len(labels))
        settings |= {"guidance": guidance_scale, "num_steps": num_inference_steps}
        result = self.model.generator(labels, seeds=chosen, **settings)
        images: Any
        if output_type == "pil":
            images = [Image.fromarray(image) for image in result.images]
        else:
            images = ((result.images_BCHW + 1) / 2).clamp(0, 1)
            if output_type == "np":
                images = images.permute(0, 2, 3, 1).cpu().float().numpy()
        if not return_dict:
            return (images,)
        return ImagePipelineOutput(images=images)  # type: ignore[no-untyped-call]


def _draw_seeds(given: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[int]:
    """One seed per image, from a generator for all of them, or from one for each."""
    generators = [given] * count if given is None or isinstance(given, torch.Generator) else list(given)
    if len(generators) != count:
        raise ValueError(f"{len(generators)} generators for {count} images: give one, or one per image")
    return [
        int(torch.randint(_SEEDS - 1, (), generator=one, device=one.device if one else "cpu"))
        for one in generators
    ]
