"""`Tokenizer`: images to a flat sequence of tokens, coarse to fine, and back.

Letters: B batch, S scales, L tokens of all scales, V codes, C width of a code, H W pixels, h w latent
cells.
Special here: the quantiser runs in float32 whatever the autoencoder runs in, since one changed token
changes all finer ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nextscale.scales import ScaleSchedule
from nextscale.tokenizer.autoencoder import Decoder, Encoder
from nextscale.tokenizer.quantizer import MultiScaleQuantizer, Quantized
from nextscale.tokenizer.settings import Precision, TokenizerSettings


class Tokenizer(nn.Module):
    """Encoder, multi-scale residual quantiser and decoder (paper, section 3.2)."""

    def __init__(self, settings: TokenizerSettings, schedule: ScaleSchedule) -> None:
        super().__init__()
        self.settings, self.schedule = settings, schedule
        code_dim = settings.quantizer.code_dim
        self.encoder = Encoder(settings.autoencoder, code_dim=code_dim)
        self.decoder = Decoder(settings.autoencoder, code_dim=code_dim)
        self.pre_quant = nn.Conv2d(code_dim, code_dim, 3, padding=1)
        self.post_quant = nn.Conv2d(code_dim, code_dim, 3, padding=1)
        self.quantizer = MultiScaleQuantizer(settings.quantizer, schedule)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        (height, width), reduction = self.schedule.latent_size, self.settings.autoencoder.reduction
        return height * reduction, width * reduction

    def features(self, images_BCHW: Tensor, *, recompute: bool = False) -> Tensor:
        """The map before quantisation.

        Args:
            images_BCHW: float (B, 3, H, W) in [-1, 1].
            recompute: see `forward`.

        Returns:
            (B, C, h, w).

        Raises:
            ValueError: images of another size or number of channels.
        """
        if tuple(images_BCHW.shape[1:]) != (3, *self.image_size):
            raise ValueError(
                f"expected images (B, 3, {self.image_size[0]}, {self.image_size[1]}), given "
                f"{tuple(images_BCHW.shape)}: resize them, or use a model of that size"
            )
        return self.pre_quant(self.encoder(self._laid_out(images_BCHW), recompute=recompute))

    @torch.no_grad()
    def encode(self, images_BCHW: Tensor, *, precision: Precision = "float32") -> Tensor:
        """Images float (B, 3, H, W) in [-1, 1] -> tokens int64 (B, L) in [0, V).

        Args:
            images_BCHW: of the tokenizer's size.
            precision: of the encoder, whatever surrounds this. bfloat16 is two to three times as fast and
                changes one token in twenty, mostly among codes that are nearly equally far.

        Raises:
            ValueError: images of another size.
        """
        with torch.autocast(images_BCHW.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            features = self.features(images_BCHW)
        with torch.autocast(features.device.type, enabled=False):
            return self.quantizer.encode(features.float())

    def decode(self, tokens_BL: Tensor) -> Tensor:
        """Tokens int64 (B, L) -> images float (B, 3, H, W) in [-1, 1].

        Raises ValueError for another number of tokens.
        """
        return self.decode_features(self._maps(tokens_BL)[-1])

    def decode_each_scale(self, tokens_BL: Tensor) -> Iterator[Tensor]:
        """S images float (B, 3, H, W) in [-1, 1]: what the tokens up to and including each scale show."""
        for accumulated in self._maps(tokens_BL):
            yield self.decode_features(accumulated)

    def decode_features(self, features_BChw: Tensor) -> Tensor:
        """An accumulated map (B, C, h, w) -> images (B, 3, H, W) in [-1, 1], float32 or wider."""
        images_BCHW = self.decoder(self.post_quant(self._laid_out(features_BChw)))
        exact = torch.promote_types(images_BCHW.dtype, torch.float32)
        return images_BCHW.to(exact, memory_format=torch.contiguous_format).clamp_(-1, 1)

    def teacher_inputs(self, tokens_BL: Tensor) -> Tensor:
        """Tokens (B, L) -> what a prior reads for the scales after the first: float32 (B, L - T of the first,
        C).
        """
        self._check_tokens(tokens_BL)
        with torch.autocast(tokens_BL.device.type, enabled=False):
            return self.quantizer.teacher_inputs(tokens_BL)

    def forward(
        self,
        images_BCHW: Tensor,
        *,
        rotate: bool = False,
        last_scale_B: Tensor | None = None,
        recompute: bool = False,
    ) -> tuple[Tensor, Quantized]:
        """Reconstruct with gradients: the images before clamping, and what the quantiser did.

        Args:
            images_BCHW: float (B, 3, H, W) in [-1, 1].
            rotate: see `MultiScaleQuantizer.forward`.
            last_scale_B: see `MultiScaleQuantizer.forward`.
            recompute: forget what happens inside the blocks of the autoencoder and compute it again in the
                backward pass: about a third more work for a fraction of the memory.
        """
        features = self.features(images_BCHW, recompute=recompute)
        with torch.autocast(features.device.type, enabled=False):
            quantized = self.quantizer(features.float(), rotate=rotate, last_scale_B=last_scale_B)
        return self.decoder(self.post_quant(quantized.features_BChw), recompute=recompute), quantized

    def _laid_out(self, x_BCHW: Tensor) -> Tensor:
        """In the dtype of the weights, channels last: CPUs keep that order and are faster in it."""
        return x_BCHW.to(self.pre_quant.weight.dtype, memory_format=torch.channels_last)

    def _maps(self, tokens_BL: Tensor) -> list[Tensor]:
        self._check_tokens(tokens_BL)
        with torch.autocast(tokens_BL.device.type, enabled=False):
            return list(self.quantizer.maps(tokens_BL))

    def _check_tokens(self, tokens_BL: Tensor) -> None:
        vocab_size, num_tokens = self.settings.quantizer.vocab_size, self.schedule.num_tokens
        if tokens_BL.dtype != torch.int64 or tokens_BL.ndim != 2 or tokens_BL.shape[1] != num_tokens:
            raise ValueError(
                f"expected tokens int64 (B, {num_tokens}), given {tokens_BL.dtype} {tuple(tokens_BL.shape)}"
            )
        if tokens_BL.numel() and not 0 <= int(tokens_BL.min()) <= int(tokens_BL.max()) < vocab_size:
            raise ValueError(
                f"tokens must lie in [0, {vocab_size}), given {tokens_BL.min()}..{tokens_BL.max()}"
            )
