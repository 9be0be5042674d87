"""Multi-scale residual vector quantisation (paper, section 3.2, algorithms 1 and 2), always in float32.

Letters: B batch, S scales, L tokens of all scales, T tokens of one scale, V codes, C width of a code, h w
latent cells.
Special here: there is one loop, `walk`. Encoding, decoding, teacher inputs, training and generation differ
only in how the code vectors of a scale are chosen, which is the function that they hand to it; so they
cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.scales import ScaleSchedule
from nextscale.tokenizer.settings import QuantizerSettings

#: Chooses the code vectors (B, T, C) of a scale, given its number and the map (B, C, h, w) so far.
ChooseCodes = Callable[[int, Tensor], Tensor]


class Quantized(NamedTuple):
    """What training needs of one pass through the quantiser."""

    features_BChw: Tensor  #: the accumulated codes, with straight-through gradient to the encoder's features
    tokens_BL: Tensor
    codebook_loss: Tensor  #: pulls codes and phis towards the features, mean over scales
    commitment_loss: Tensor  #: pulls the features towards the codes, mean over scales


class Phi(nn.Conv2d):
    """phi(x) = (1 - ratio) x + ratio conv(x): mends what up-sampling a coarse map blurs."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__(dim, dim, 3, padding=1)
        self.ratio = ratio

    def forward(self, x_BChw: Tensor) -> Tensor:
        return x_BChw * (1 - self.ratio) + super().forward(x_BChw) * self.ratio


class MultiScaleQuantizer(nn.Module):
    """The codebook, the phis and the loop over scales."""

    def __init__(self, settings: QuantizerSettings, schedule: ScaleSchedule) -> None:
        super().__init__()
        self.settings, self.schedule = settings, schedule
        num_phis = settings.num_phis or schedule.num_scales
        self.phi_of_scale = settings.phi_of_scale or (
            schedule.phi_of_scale(num_phis) if settings.num_phis else tuple(range(schedule.num_scales))
        )
        if len(self.phi_of_scale) != schedule.num_scales or not all(
            0 <= phi < num_phis for phi in self.phi_of_scale
        ):
            raise ValueError(
                f"phi_of_scale {self.phi_of_scale} must name one of {num_phis} phis for each of "
                f"{schedule.num_scales} scales"
            )
        # nn.Embedding's own filling costs seconds of imports on the meta device, where models are loaded
        codes = torch.empty(settings.vocab_size, settings.code_dim)
        self.codebook = nn.Embedding.from_pretrained(codes, freeze=False)
        if not codes.is_meta:
            nn.init.normal_(self.codebook.weight)
        self.phis = nn.ModuleList(Phi(settings.code_dim, settings.phi_ratio) for _ in range(num_phis))

    def walk(self, choose: ChooseCodes, batch: int) -> Iterator[Tensor]:
        """Yield the accumulated map (B, C, h, w) after each scale; every other method is this loop.

        Args:
            choose: returns the code vectors of a scale, float32 (B, T, C).
            batch: B.
        """
        height, width = self.schedule.latent_size
        weight = self.codebook.weight
        accumulated = torch.zeros(
            batch, self.settings.code_dim, height, width, device=weight.device, dtype=weight.dtype
        )
        for scale, (rows, columns) in enumerate(self.schedule.sizes):
            codes_BChw = choose(scale, accumulated).transpose(1, 2).reshape(batch, -1, rows, columns)
            if (rows, columns) != (height, width):
                codes_BChw = F.interpolate(codes_BChw, size=(height, width), mode="bicubic")
            accumulated = accumulated + self.phis[self.phi_of_scale[scale]](codes_BChw)
            yield accumulated

    def resize_to(self, scale: int, map_BChw: Tensor) -> Tensor:
        """Average (B, C, h, w) over the cells of a scale: (B, T, C).

        The prior reads its finer scales through this.
        """
        size = self.schedule.sizes[scale]
        if size != self.schedule.latent_size:
            map_BChw = F.interpolate(map_BChw, size=size, mode="area")
        return map_BChw.flatten(2).transpose(1, 2)

    @torch.no_grad()
    def nearest(self, vectors_BTC: Tensor) -> Tensor:
        """The number of the code nearest to each vector: float32 (B, T, C) -> int64 (B, T)."""
        flat, codes = vectors_BTC.reshape(-1, vectors_BTC.shape[-1]), self.codebook.weight
        if self.settings.unit_codes:
            chosen = (F.normalize(flat, dim=-1) @ F.normalize(codes, dim=-1).T).argmax(dim=1)
        else:
            # the squared distance without the vector's own norm, which is the same for all codes
            chosen = torch.addmm(codes.square().sum(1), flat, codes.T, alpha=-2).argmin(dim=1)
        return chosen.view(vectors_BTC.shape[:2])

    def maps(self, tokens_BL: Tensor) -> Iterator[Tensor]:
        """The accumulated map (B, C, h, w) after each scale of the given tokens."""
        parts = self.schedule.split(tokens_BL)
        return self.walk(lambda scale, _: self.codebook(parts[scale]), len(tokens_BL))

    @torch.no_grad()
    def encode(self, features_BChw: Tensor) -> Tensor:
        """Features float32 (B, C, h, w) -> tokens int64 (B, L), each scale coding what the coarser ones left
        over.
        """
        parts: list[Tensor] = []

        def choose(scale: int, accumulated: Tensor) -> Tensor:
            parts.append(self.nearest(self.resize_to(scale, features_BChw - accumulated)))
            return self.codebook(parts[-1])

        for _ in self.walk(choose, len(features_BChw)):
            pass
        return self.schedule.join(parts)

    def teacher_inputs(self, tokens_BL: Tensor) -> Tensor:
        """What the prior reads for the scales after the first: (B, L) -> float32 (B, L - T of the first
        scale, C).
        """
        maps = list(self.maps(tokens_BL))[:-1]
        inputs = [self.resize_to(scale, map_BChw) for scale, map_BChw in enumerate(maps, start=1)]
        return (
            torch.cat(inputs, dim=1)
            if inputs
            else self.codebook.weight.new_zeros(len(tokens_BL), 0, self.code_dim)
        )

    @property
    def code_dim(self) -> int:
        """C."""
        return self.settings.code_dim

    def forward(self, features_BChw: Tensor) -> Quantized:
        """Quantise with gradients, for training: float32 (B, C, h, w)."""
        fixed, parts = features_BChw.detach(), []

        def choose(scale: int, accumulated: Tensor) -> Tensor:
            parts.append(self.nearest(self.resize_to(scale, fixed - accumulated.detach())))
            return self.codebook(parts[-1])

        codebook_loss = commitment_loss = features_BChw.new_zeros(())
        accumulated = features_BChw
        for accumulated in self.walk(choose, len(features_BChw)):
            codebook_loss = codebook_loss + F.mse_loss(accumulated, fixed)
            commitment_loss = commitment_loss + F.mse_loss(features_BChw, accumulated.detach())
        num_scales = self.schedule.num_scales
        straight_through = features_BChw + (accumulated.detach() - fixed)
        return Quantized(
            straight_through,
            self.schedule.join(parts),
            codebook_loss / num_scales,
            commitment_loss / num_scales,
        )
