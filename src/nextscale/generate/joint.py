"""Several requests in one batch, each with its own labels, seeds, settings and kind.

Letters: B batch, S scales, L tokens, C channels, h w cells.
Special here: a plain generation beside an edit is one of which no token is kept. What shares a batch is never
mixed; only rounding depends on the size of the batch (docs/serving.md says how often that shows).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from nextscale.generate.editing import Edit
from nextscale.generate.generator import Generator
from nextscale.generate.request import Forced, Request
from nextscale.generate.sampling import Draw
from nextscale.pixels import to_uint8


class Share(NamedTuple):
    """What one caller wants of a batch."""

    request: Request
    edit: Edit | None = None


def can_share(one: Request, other: Request) -> bool:
    """Whether two requests may be in one batch: diffusion takes its steps for all images alike."""
    return (one.smooth, one.sampler, one.num_steps) == (other.smooth, other.sampler, other.num_steps)


def joined(requests: Sequence[Request]) -> Request:
    """One request for the images of all, in their order.

    Args:
        requests: at least one, and all of them ones that `can_share` a batch.
    """
    first = requests[0]
    assert all(can_share(first, other) for other in requests)
    draws = [request.draw for request in requests]
    return Request(
        labels_B=torch.cat([request.labels_B for request in requests]),
        seeds=tuple(seed for request in requests for seed in request.seeds),
        guidance_B=torch.cat([request.guidance_B for request in requests]),
        weights_SB=torch.cat([request.weights_SB for request in requests], dim=1),
        num_guided=max(request.num_guided for request in requests),
        ssg_B=torch.cat([request.ssg_B for request in requests]),
        sharpened=any(request.sharpened for request in requests),
        draw=Draw(
            tuple(value for draw in draws for value in draw.top_k),
            tuple(value for draw in draws for value in draw.top_p),
            torch.cat([draw.top_k_B for draw in draws]),
            torch.cat([draw.top_p_B for draw in draws]),
            torch.cat([draw.temperature_B for draw in draws]),
        ),
        smooth=first.smooth,
        sampler=first.sampler,
        num_steps=first.num_steps,
        guided=any(request.guided for request in requests),
        forced=_forced(requests),
    )


def _forced(requests: Sequence[Request]) -> Forced | None:
    given = [request.forced for request in requests if request.forced is not None]
    if not given:
        return None
    num_tokens = given[0].tokens_BL.shape[1]
    parts = [request.forced or _nothing_forced(request, num_tokens) for request in requests]
    return Forced(torch.cat([part.tokens_BL for part in parts]), torch.cat([part.kept_BL for part in parts]))


def _nothing_forced(request: Request, num_tokens: int) -> Forced:
    tokens_BL = request.labels_B.new_zeros(len(request.seeds), num_tokens)
    return Forced(tokens_BL, torch.zeros_like(tokens_BL, dtype=torch.bool))


class Stage(NamedTuple):
    """A batch after one scale, row of tokens or step of diffusion."""

    number: int  #: from 0
    last: bool
    generator: Generator
    shares: Sequence[Share]
    features_BChw: Tensor

    @torch.no_grad()
    def pictures(self, wanted: Sequence[int]) -> list[numpy.ndarray]:
        """Of these shares, by their places in the batch: uint8 (B of the share, H, W, 3) each.

        Only what is wanted is decoded.
        """
        if not wanted:
            return []
        counts = [len(share.request.seeds) for share in self.shares]
        features = self.features_BChw.split(counts)
        images = self.generator.tokenizer.decode_features(torch.cat([features[place] for place in wanted]))
        parts = images.split([counts[place] for place in wanted])
        edits = [self.shares[place].edit for place in wanted]
        return [
            to_uint8(edit.finish(part) if edit else part) for part, edit in zip(parts, edits, strict=True)
        ]


def stages(generator: Generator, shares: Sequence[Share]) -> Iterator[Stage]:
    """Generate a batch of several requests; closing the iterator ends it."""
    request = joined([share.request for share in shares])
    steps, number, count = generator.steps(request), 0, num_stages(generator, request)
    while True:
        with torch.no_grad():  # not around the yield: the caller's code must not run in it
            step = next(steps, None)
        if step is None:
            return
        yield Stage(number, number == count - 1, generator, shares, step[1])
        number += 1


def num_stages(generator: Generator, request: Request) -> int:
    """How many stages a batch with this request has."""
    settings = generator.settings
    kind = settings.prior.kind if settings.prior else "next_scale"
    if kind == "next_scale":
        return settings.schedule.num_scales
    return settings.schedule.latent_size[0] if kind == "next_token" else request.num_steps
