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
#: Features shorter than this have no direction.
_SHORTEST = 1e-6
#: Distances that are compared at a time on CPUs: 4 MB.
_BLOCK = 2**20


class Quantized(NamedTuple):
    """What training needs of one pass through the quantiser."""

    features_BChw: Tensor  #: the accumulated codes, with gradient to the encoder's features
    tokens_BL: Tensor
    codebook_loss: Tensor  #: pulls codes and phis towards the features, mean over scales
    commitment_loss: Tensor  #: pulls the features towards the codes, mean over scales
    targets_BLC: Tensor  #: what each code was chosen for, without gradient
    kept_BL: Tensor  #: bool, whether a token belongs to a scale at which its sample had not stopped yet


class Phi(nn.Conv2d):
    """phi(x) = (1 - ratio) x + ratio conv(x): mends what up-sampling a coarse map blurs."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__(dim, dim, 3, padding=1)
        self.ratio = ratio

    def forward(self, x_BChw: Tensor) -> Tensor:
        return x_BChw * (1 - self.ratio) + super().forward(x_BChw) * self.ratio


def rotate_onto(features_BChw: Tensor, codes_BChw: Tensor) -> Tensor:
    """The codes as a rotation and a stretch of the features, both taken as constants (rotation trick).

    In every cell a vector e becomes its code q = (|q| / |e|) R e, where R turns e onto q in their common
    plane: R x = x - 2 m (m.x) + 2 q' (e'.x), with e' = e / |e|, q' = q / |q| and m the middle of both
    directions (Fifty et al. 2024, arXiv 2410.06424, section 4). The gradient of q arrives at e turned back
    by R and stretched, so that the angle between gradient and code stays; a vector of length 0 has no
    direction and gets it unchanged.

    Args:
        features_BChw: e, float32 (B, C, h, w).
        codes_BChw: q, the same shape; no gradient goes to it.

    Returns:
        The values of q, with gradient to e.
    """
    fixed, codes = features_BChw.detach(), codes_BChw.detach()
    length = fixed.norm(dim=1, keepdim=True)
    from_BChw, onto_BChw = F.normalize(fixed, dim=1), F.normalize(codes, dim=1)
    middle_BChw = F.normalize(from_BChw + onto_BChw, dim=1)
    turned = (
        features_BChw
        - 2 * middle_BChw * (middle_BChw * features_BChw).sum(dim=1, keepdim=True)
        + 2 * onto_BChw * (from_BChw * features_BChw).sum(dim=1, keepdim=True)
    )
    stretch = codes.norm(dim=1, keepdim=True) / length.clamp_min(_SHORTEST)
    return torch.where(length > _SHORTEST, stretch * turned, features_BChw + (codes - fixed))


def nearest_rows(vectors_NC: Tensor, codes_VC: Tensor, *, by_angle: bool = False) -> Tensor:
    """The row of ``codes_VC`` nearest to each vector, the first one of equals: int64 (N,).

    The squared distance is compared without the vector's own norm, which is the same for all codes; of unit
    vectors (``by_angle``) the product alone. On CPUs the products are made in blocks that stay in the cache,
    in memory that is used again: at once they take five times as long (docs/log.md).
    """
    norms_V = codes_VC.new_zeros(len(codes_VC)) if by_angle else codes_VC.square().sum(1)
    if vectors_NC.is_cuda:
        return torch.addmm(norms_V, vectors_NC, codes_VC.T, alpha=-2).argmin(dim=1)
    rows = max(1, _BLOCK // len(codes_VC))
    distances = vectors_NC.new_empty(min(rows, len(vectors_NC)), len(codes_VC))
    chosen = [
        torch.addmm(norms_V, part, codes_VC.T, alpha=-2, out=distances[: len(part)]).min(dim=1).indices
        for part in vectors_NC.split(rows)
    ]
    return torch.cat(chosen)


def _mean_error(one_BChw: Tensor, other_BChw: Tensor, weight_B: Tensor | None) -> Tensor:
    """The mean squared error, each sample with its weight."""
    if weight_B is None:
        return F.mse_loss(one_BChw, other_BChw)
    return ((one_BChw - other_BChw).square().flatten(1).mean(dim=1) * weight_B).mean()


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
            with torch.autocast(weight.device.type, enabled=False):
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
            flat, codes = F.normalize(flat, dim=-1), F.normalize(codes, dim=-1)
        return nearest_rows(flat, codes, by_angle=self.settings.unit_codes).view(vectors_BTC.shape[:2])

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

    def forward(
        self, features_BChw: Tensor, *, rotate: bool = False, last_scale_B: Tensor | None = None
    ) -> Quantized:
        """Quantise with gradients, for training.

        Args:
            features_BChw: float32 (B, C, h, w).
            rotate: hand the decoder's gradient back through `rotate_onto` instead of straight through.
            last_scale_B: int64 (B,) in [0, S), the scale after which each sample stops; what comes later
                counts neither in its map nor in its losses. None: nobody stops early.
        """
        fixed, parts, targets = features_BChw.detach(), [], []
        num_scales = self.schedule.num_scales

        def choose(scale: int, accumulated: Tensor) -> Tensor:
            targets.append(self.resize_to(scale, fixed - accumulated.detach()))
            parts.append(self.nearest(targets[-1]))
            return self.codebook(parts[-1])

        codebook_loss = commitment_loss = features_BChw.new_zeros(())
        last_map, weight_B = features_BChw, None
        for scale, accumulated in enumerate(self.walk(choose, len(features_BChw))):
            if last_scale_B is None:
                last_map = accumulated
            else:  # the mean over a sample's own scales
                goes_on_B = scale <= last_scale_B
                last_map = torch.where(goes_on_B[:, None, None, None], accumulated, last_map)
                weight_B = goes_on_B * (num_scales / (last_scale_B + 1))
            codebook_loss = codebook_loss + _mean_error(accumulated, fixed, weight_B)
            commitment_loss = commitment_loss + _mean_error(features_BChw, accumulated.detach(), weight_B)
        if rotate:
            with_gradient = rotate_onto(features_BChw, last_map)
        else:  # straight through
            with_gradient = features_BChw + (last_map.detach() - fixed)
        tokens_BL = self.schedule.join(parts)
        return Quantized(
            with_gradient,
            tokens_BL,
            codebook_loss / num_scales,
            commitment_loss / num_scales,
            self.schedule.join(targets),
            self._kept(tokens_BL, last_scale_B),
        )

    def _kept(self, tokens_BL: Tensor, last_scale_B: Tensor | None) -> Tensor:
        if last_scale_B is None:
            return torch.ones_like(tokens_BL, dtype=torch.bool)
        scale_L = torch.tensor(self.schedule.level_ids, device=tokens_BL.device)
        return scale_L <= last_scale_B[:, None]
