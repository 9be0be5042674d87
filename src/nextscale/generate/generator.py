"""`Generator`: a tokenizer and a prior together make images, coarse to fine.

Letters: B batch, S scales, L tokens of all scales, T tokens of one scale, V codes, C width of a code, H W
pixels, h w cells.
Special here: one generation is one Python generator, `_tokens_of_scales`; whatever it needs lives in its
frame, so two can run side by side, and one that fails leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy
import torch
from PIL import Image
from torch import Tensor

from nextscale.generate.folder import load_prior, load_tokenizer, read_settings, save_model
from nextscale.generate.guidance import guidance_weights, guide, num_guided_scales, ramp, sharpen
from nextscale.generate.request import Label, Request, Sampling, build_request
from nextscale.generate.sampling import draw_tokens, mix_codes
from nextscale.generate.settings import ModelSettings
from nextscale.pixels import grid, to_uint8
from nextscale.prior.next_scale import NextScalePrior
from nextscale.rng import code_uniforms, token_uniforms
from nextscale.tokenizer.model import Tokenizer


@dataclass(frozen=True)
class Preview:
    """The image after one scale."""

    scale: int  #: 0 is the coarsest
    images: numpy.ndarray  #: uint8 (B, H, W, 3)
    tokens_BL: Tensor | None  #: int64, all scales so far; None for `smooth`


@dataclass(frozen=True)
class Result:
    """Finished images."""

    images_BCHW: Tensor  #: float32 in [-1, 1]
    tokens_BL: Tensor | None  #: int64; None for `smooth`, which draws no tokens

    @property
    def images(self) -> numpy.ndarray:
        """The images as uint8 (B, H, W, 3)."""
        return to_uint8(self.images_BCHW)

    def save(self, path: str | Path, *, columns: int | None = None) -> None:
        """Write all images as one picture, ``columns`` side by side (by default about a square)."""
        sheet = grid(self.images, columns=columns or int(numpy.ceil(len(self.images_BCHW) ** 0.5)))
        Image.fromarray(sheet).save(path)


class Generator:
    """A model that makes images.

    Args:
        settings: what ``config.json`` holds.
        tokenizer: decodes tokens.
        prior: predicts them; None for a model that only reconstructs.
    """

    def __init__(
        self, settings: ModelSettings, tokenizer: Tokenizer, prior: NextScalePrior | None = None
    ) -> None:
        self.settings, self.tokenizer, self._prior = settings, tokenizer.eval(), prior
        if prior is not None:
            prior.eval()

    @classmethod
    def load(cls, model: str | Path, *, device: str | torch.device = "cpu") -> Generator:
        """Load a bundled model by name or a model folder.

        Raises:
            ValueError: no such model, or files that do not fit together.
        """
        from nextscale.models import find_model

        folder = find_model(model)
        settings = read_settings(folder)
        prior = load_prior(folder, settings) if settings.prior is not None else None
        return cls(settings, load_tokenizer(folder, settings), prior).to(device)

    def save(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write a model folder, whole or not at all. Raises ValueError when it holds other files."""
        save_model(Path(folder), self.settings, tokenizer=self.tokenizer, prior=self._prior, dtype=dtype)

    def to(self, device: str | torch.device) -> Generator:
        """Move the weights; returns self."""
        self.tokenizer.to(device)
        if self._prior is not None:
            self._prior.to(device)
        return self

    @property
    def prior(self) -> NextScalePrior:
        """The transformer. Raises ValueError when the model has none."""
        if self._prior is None:
            raise ValueError(
                "this model holds a tokenizer but no prior: train one with nextscale train prior"
            )
        return self._prior

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class."""
        return self.settings.class_names

    @torch.no_grad()
    def __call__(
        self, labels: Sequence[Label], *, seeds: Sequence[int], smooth: bool = False,
        **settings: Unpack[Sampling],
    ) -> Result:  # fmt: skip
        """Make one image per label. Each depends on its seed, label and settings alone.

        Args:
            labels: class numbers or names; None is the unconditional class.
            seeds: one per image, whole numbers from 0.
            smooth: mix codes instead of drawing one (pictures only; the result carries no tokens).
            settings: what is not given, or None, is the model's own; a list gives one value per image.

                guidance: classifier-free guidance at the last scale, from 0 (off).
                top_k: draw among the k likeliest codes; 0 is off, 1 is greedy.
                top_p: draw among the likeliest codes that hold this probability, in (0, 1]; 1 is off.
                temperature: divides the logits, above 0.
                num_unguided_scales: last scales without guidance, which then take half the work; 0 is none.
                ssg: scaled spatial guidance, away from the coarser scale's logits, from 0 (off).

        Raises:
            ValueError: a value out of its range, with the range.
        """
        request = self._request(labels, seeds, smooth, settings)
        parts: list[Tensor] = []
        finished: Tensor | None = None
        for tokens, accumulated in self._tokens_of_scales(request):
            parts.append(tokens)
            finished = accumulated
        assert finished is not None
        images_BCHW = self.tokenizer.decode_features(finished)
        return Result(images_BCHW, None if smooth else torch.cat(parts, dim=1))

    def stream(
        self, labels: Sequence[Label], *, seeds: Sequence[int], smooth: bool = False,
        **settings: Unpack[Sampling],
    ) -> Iterator[Preview]:  # fmt: skip
        """As calling the generator, but one `Preview` after each scale; the last is the finished image."""
        request = self._request(labels, seeds, smooth, settings)
        return self._previews(request)

    def _previews(self, request: Request) -> Iterator[Preview]:
        parts: list[Tensor] = []
        steps = self._tokens_of_scales(request)
        for scale in range(self.settings.schedule.num_scales):
            with torch.no_grad():  # not around the yield: the caller's code must not run in it
                tokens, accumulated = next(steps)
                parts.append(tokens)
                images = to_uint8(self.tokenizer.decode_features(accumulated))
                tokens_so_far = None if request.smooth else torch.cat(parts, dim=1)
            yield Preview(scale, images, tokens_so_far)

    def _request(
        self, labels: Sequence[Label], seeds: Sequence[int], smooth: bool, overrides: Sampling
    ) -> Request:
        return build_request(
            labels, seeds, self.settings, overrides=overrides, smooth=smooth,
            device=self.prior.position.device,
        )  # fmt: skip

    def _tokens_of_scales(self, request: Request) -> Iterator[tuple[Tensor, Tensor]]:
        """The tokens (B, T) of each scale, and the map (B, C, h, w) accumulated up to it."""
        prior, quantizer, schedule = self.prior, self.tokenizer.quantizer, self.settings.schedule
        batch, device = len(request.seeds), request.labels_B.device
        weights_SB = guidance_weights(request.guidance_B, request.num_unguided_B, schedule.num_scales)
        num_guided, sharpened = num_guided_scales(weights_SB), bool((request.ssg_B > 0).any())
        labels = request.labels_B
        if num_guided:  # both branches in one batch
            labels = torch.cat([labels, torch.full_like(labels, prior.unconditional)])
        condition, cache = prior.condition(labels), prior.new_cache(len(labels))
        uniforms = numpy.stack([token_uniforms(seed, schedule.num_tokens) for seed in request.seeds])
        uniforms_BL = torch.from_numpy(uniforms).to(device)
        tokens: list[Tensor] = []
        coarser: Tensor | None = None

        def choose(scale: int, accumulated: Tensor) -> Tensor:
            nonlocal condition, coarser
            inputs = quantizer.resize_to(scale, accumulated) if scale else None
            if scale == num_guided > 0:  # no finer scale reads the unconditional branch either
                condition = condition.first(batch)
                cache.keep_first(batch)
            if inputs is not None and scale < num_guided:
                inputs = torch.cat([inputs, inputs])
            logits = prior.step(scale, condition, inputs, cache)
            if scale < num_guided:
                logits = guide(logits[:batch], logits[batch:], weights_SB[scale])
            before, coarser = coarser, logits
            if before is not None and sharpened:
                sizes = schedule.sizes[scale - 1], schedule.sizes[scale]
                logits = sharpen(logits, before, request.ssg_B, sizes=sizes)
            if request.smooth:
                share = ramp(scale, schedule.num_scales)
                draws = [code_uniforms(seed, scale, *logits.shape[1:]) for seed in request.seeds]
                noise = torch.from_numpy(numpy.stack(draws)).to(device)
                tokens.append(logits.new_zeros(0))
                return mix_codes(logits, noise, quantizer.codebook.weight, request.draw, share=share)
            tokens.append(draw_tokens(logits, uniforms_BL[:, schedule.slice(scale)], request.draw))
            return quantizer.codebook(tokens[-1])

        for accumulated in quantizer.walk(choose, batch):
            yield tokens[-1], accumulated
