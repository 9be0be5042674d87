"""`DiffusionPrior`: a transformer that guesses the noise in the tokenizer's features (DiT, arXiv 2212.09748),
on the blocks of the next-scale prior.

Letters: B batch, L latent cells, C channels, D model width, F width of the time's waves, h w cells.
Special here: it knows no tokens. It reads the features before quantisation, a latent cell per place
(patches of size 1), brought to mean 0 and deviation 1 per channel by numbers that are measured before
training and stored with the weights. Everybody attends to everybody. Gates and head start at zero
(AdaLN-zero); it guesses the noise alone, no variance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nextscale.prior.layers import attend_to
from nextscale.prior.settings import TIME_DIM, TransformerSettings
from nextscale.prior.transformer import Condition, Transformer
from nextscale.scales import ScaleSchedule

_LONGEST = 10_000  # of the periods of the waves that tell the time, / 2 pi


class DiffusionPrior(Transformer):
    """A diffusion transformer over the cells of a latent map.

    Args:
        settings: its sizes.
        schedule: its last scale is the map.
        code_dim: C.
        num_classes: the unconditional class gets this number as its label.
    """

    mean_C: Tensor
    deviation_C: Tensor

    def __init__(
        self, settings: TransformerSettings, schedule: ScaleSchedule, *, code_dim: int, num_classes: int
    ) -> None:
        super().__init__(settings, num_classes=num_classes)
        self.latent_size, width = schedule.latent_size, settings.width
        self.position = nn.Parameter(torch.empty(schedule.num_cells[-1], width))
        self.input_projection = nn.Linear(code_dim, width)
        self.time_embedding = nn.Sequential(
            nn.Linear(TIME_DIM, width), nn.SiLU(), nn.Linear(width, width)
        )  # fmt: skip
        self._add_blocks(out_dim=code_dim)
        self.register_buffer("mean_C", torch.zeros(code_dim))
        self.register_buffer("deviation_C", torch.ones(code_dim))
        self._init_weights([self.position], head_factor=0.0)
        if self.shared_modulation is not None:  # whose gates the released rule leaves open
            with torch.no_grad():
                self.shared_modulation.weight[: 2 * width].mul_(settings.gate_init)

    def condition(self, labels_B: Tensor, times_B: Tensor) -> Condition:
        """Everything that depends on labels and times alone.

        Args:
            labels_B: int64 (B,) in [0, num_classes]; the last one is the unconditional class.
            times_B: int64 (B,) in [0, 1000).
        """
        waves_BF = time_waves(times_B).to(self.position.dtype)
        return self._condition(self.class_embedding(labels_B) + self.time_embedding(waves_BF))

    def forward(
        self, labels_B: Tensor, noisy_BLC: Tensor, times_B: Tensor, *, keep_D2B: Tensor | None = None,
        recompute: bool = False,
    ) -> Tensor:  # fmt: skip
        """Guess the noise.

        Args:
            labels_B: int64 (B,) in [0, num_classes].
            noisy_BLC: float32 (B, L, C), standardised features with noise (`add_noise`).
            times_B: int64 (B,) in [0, 1000).
            keep_D2B: float (depth, 2, B) factors of the residual branches (`drop_path_factors`), or None.
            recompute: compute the inside of the blocks again in the backward pass, to save memory.

        Returns:
            float32 (B, L, C).

        Raises:
            ValueError: another number of cells.
        """
        if noisy_BLC.shape[1] != len(self.position):
            raise ValueError(f"expected (B, {len(self.position)}, C), given {tuple(noisy_BLC.shape)}")
        condition = self.condition(labels_B, times_B)
        x_BTD = self.input_projection(noisy_BLC.to(self.position.dtype)) + self.position
        x_BTD = self._through_blocks(x_BTD, condition, attend_to, keep_D2B=keep_D2B, recompute=recompute)
        return self._output(x_BTD, condition)

    @torch.no_grad()
    def measure(self, mean_C: Tensor, deviation_C: Tensor) -> None:
        """Store the mean and the standard deviation of the features' channels, float (C,)."""
        self.mean_C.copy_(mean_C)
        self.deviation_C.copy_(deviation_C)

    def standardise(self, features_BChw: Tensor) -> Tensor:
        """Features (B, C, h, w) -> float32 (B, L, C) with mean 0 and deviation 1 per channel."""
        return (features_BChw.float().flatten(2).transpose(1, 2) - self.mean_C) / self.deviation_C

    def features(self, standardised_BLC: Tensor) -> Tensor:
        """The inverse of `standardise`."""
        features_BLC = standardised_BLC * self.deviation_C + self.mean_C
        return features_BLC.transpose(1, 2).unflatten(2, self.latent_size)


def time_waves(times_B: Tensor) -> Tensor:
    """Cosines and sines of the time at periods that grow geometrically: float32 (B, 256)."""
    half = TIME_DIM // 2
    exponents = torch.arange(half, dtype=torch.float32, device=times_B.device) / half
    angles = times_B[:, None].float() * (-math.log(_LONGEST) * exponents).exp()
    return torch.cat([angles.cos(), angles.sin()], dim=1)
