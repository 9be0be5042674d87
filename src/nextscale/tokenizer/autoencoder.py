"""The VQGAN encoder and decoder: images to a map of features and back.

Letters: B batch, C width of a code, H W pixels, h w latent cells; H = reduction * h.
Special here: a level's place in `levels` is its resolution (0 is full), so that encoder and decoder levels
of one number belong together; the decoder walks them backwards. A level is not called: its parts are, one
after another, so that nobody holds the level's input while its last parts work.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from nextscale.tokenizer.layers import (
    AttentionBlock,
    Downsample,
    ResidualBlock,
    Upsample,
    group_norm,
    silu,
    through,
)
from nextscale.tokenizer.settings import AutoencoderSettings


class Level(nn.Module):
    """Residual blocks (with attention behind each, at the lowest resolution) and a change of resolution."""

    def __init__(
        self, dim_in: int, dim_out: int, *, num_blocks: int, attention: bool, resample: nn.Module | None,
        settings: AutoencoderSettings,
    ) -> None:  # fmt: skip
        super().__init__()
        groups = settings.norm_groups
        self.blocks = nn.ModuleList(
            ResidualBlock(dim_in if index == 0 else dim_out, dim_out, norm_groups=groups)
            for index in range(num_blocks)
        )
        self.attentions = nn.ModuleList(
            AttentionBlock(dim_out, norm_groups=groups) for _ in range(num_blocks if attention else 0)
        )
        self.resample = resample if resample is not None else nn.Identity()

    def parts(self) -> Iterator[nn.Module]:
        """What an input passes, in order."""
        for index, block in enumerate(self.blocks):
            yield block
            if self.attentions:
                yield self.attentions[index]
        yield self.resample


class Middle(nn.Module):
    """Two residual blocks around an attention, at the lowest resolution."""

    def __init__(self, dim: int, settings: AutoencoderSettings) -> None:
        super().__init__()
        groups = settings.norm_groups
        self.block1 = ResidualBlock(dim, dim, norm_groups=groups)
        self.attention = AttentionBlock(dim, norm_groups=groups) if settings.attention else nn.Identity()
        self.block2 = ResidualBlock(dim, dim, norm_groups=groups)

    def parts(self) -> Iterator[nn.Module]:
        """What an input passes, in order."""
        yield from (self.block1, self.attention, self.block2)


def _parts(*levels: nn.Module) -> Iterator[nn.Module]:
    for level in levels:
        assert isinstance(level, (Level, Middle))
        yield from level.parts()


class Encoder(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> (B, C, h, w)."""

    def __init__(self, settings: AutoencoderSettings, *, code_dim: int) -> None:
        super().__init__()
        dims = [settings.base_dim * multiplier for multiplier in settings.multipliers]
        last = len(dims) - 1
        self.conv_in = nn.Conv2d(3, settings.base_dim, 3, padding=1)
        self.levels = nn.ModuleList(
            Level(
                settings.base_dim if index == 0 else dims[index - 1], dim,
                num_blocks=settings.num_res_blocks,
                attention=settings.attention and index == last,
                resample=None if index == last else Downsample(dim),
                settings=settings,
            )
            for index, dim in enumerate(dims)
        )  # fmt: skip
        self.middle = Middle(dims[-1], settings)
        self.norm_out = group_norm(dims[-1], settings.norm_groups)
        self.conv_out = nn.Conv2d(dims[-1], code_dim, 3, padding=1)

    def forward(self, images_BCHW: Tensor, *, recompute: bool = False) -> Tensor:
        hidden = self.conv_in(images_BCHW)
        for part in _parts(*self.levels, self.middle):
            hidden = through(part, hidden, recompute=recompute)
        return self.conv_out(silu(self.norm_out(hidden)))


class Decoder(nn.Module):
    """(B, C, h, w) -> (B, 3, H, W), not clamped."""

    def __init__(self, settings: AutoencoderSettings, *, code_dim: int) -> None:
        super().__init__()
        dims = [settings.base_dim * multiplier for multiplier in settings.multipliers]
        last = len(dims) - 1
        self.conv_in = nn.Conv2d(code_dim, dims[-1], 3, padding=1)
        self.middle = Middle(dims[-1], settings)
        self.levels = nn.ModuleList(
            Level(
                dims[min(index + 1, last)], dim,
                num_blocks=settings.num_res_blocks + 1,
                attention=settings.attention and index == last,
                resample=None if index == 0 else Upsample(dim),
                settings=settings,
            )
            for index, dim in enumerate(dims)
        )  # fmt: skip
        self.norm_out = group_norm(dims[0], settings.norm_groups)
        self.conv_out = nn.Conv2d(dims[0], 3, 3, padding=1)

    def forward(self, features_BChw: Tensor, *, recompute: bool = False) -> Tensor:
        hidden = self.conv_in(features_BChw)
        for part in _parts(self.middle, *reversed(self.levels)):
            hidden = through(part, hidden, recompute=recompute)
        return self.conv_out(silu(self.norm_out(hidden)))
