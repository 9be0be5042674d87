"""Encoder, decoder and quantiser as the released code runs them, on the weights of our tokenizer.

Letters: B batch, T tokens of one scale, L tokens of all scales, V codes, C width of a code, H W pixels, h w
latent cells.
Special here: channels first, one convolution after the other, attention as two products and a softmax, and
the distances to all codes written out.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.tokenizer.autoencoder import Level, Middle
from nextscale.tokenizer.layers import AttentionBlock, Downsample, ResidualBlock, Upsample
from nextscale.tokenizer.model import Tokenizer
from nextscale.tokenizer.quantizer import MultiScaleQuantizer, Phi


def decode_plainly(tokenizer: Tokenizer, map_BChw: Tensor) -> Tensor:
    """An accumulated map -> images (B, 3, H, W) in [-1, 1]."""
    decoder = tokenizer.decoder
    hidden = _conv(decoder.conv_in, _conv(tokenizer.post_quant, map_BChw))
    for level in (decoder.middle, *reversed(decoder.levels)):
        hidden = _level(level, hidden)
    return _conv(decoder.conv_out, _normed(decoder.norm_out, hidden)).clamp(-1, 1)


def features_plainly(tokenizer: Tokenizer, images_BCHW: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] -> the map before quantisation (B, C, h, w)."""
    encoder = tokenizer.encoder
    hidden = _conv(encoder.conv_in, images_BCHW)
    for level in (*encoder.levels, encoder.middle):
        hidden = _level(level, hidden)
    return _conv(tokenizer.pre_quant, _conv(encoder.conv_out, _normed(encoder.norm_out, hidden)))


@torch.no_grad()
def encode_plainly(tokenizer: Tokenizer, images_BCHW: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] -> tokens int64 (B, L)."""
    return quantise_plainly(tokenizer.quantizer, features_plainly(tokenizer, images_BCHW))


@torch.no_grad()
def quantise_plainly(quantizer: MultiScaleQuantizer, features_BChw: Tensor) -> Tensor:
    """Features (B, C, h, w) -> tokens int64 (B, L), each scale coding what the coarser ones left over."""
    rest, parts = features_BChw.clone(), []
    for scale, size in enumerate(quantizer.schedule.sizes):
        smaller = F.interpolate(rest, size=size, mode="area")
        vectors = smaller.permute(0, 2, 3, 1).reshape(-1, smaller.shape[1])
        tokens_BT = _nearest(quantizer, vectors).view(len(rest), -1)
        parts.append(tokens_BT)
        rest = rest - enlarged_codes(quantizer, scale, tokens_BT)
    return torch.cat(parts, dim=1)


def enlarged_codes(quantizer: MultiScaleQuantizer, scale: int, tokens_BT: Tensor) -> Tensor:
    """What the tokens of a scale add to the map: looked up, enlarged, smoothed: (B, C, h, w)."""
    size, full = quantizer.schedule.sizes[scale], quantizer.schedule.latent_size
    codes = F.embedding(tokens_BT, quantizer.codebook.weight)
    map_BChw = codes.transpose(1, 2).reshape(len(codes), -1, *size)
    if size != full:
        map_BChw = F.interpolate(map_BChw, size=full, mode="bicubic")
    phi = quantizer.phis[quantizer.phi_of_scale[scale]]
    assert isinstance(phi, Phi)
    return map_BChw.mul(1 - phi.ratio) + _conv(phi, map_BChw).mul(phi.ratio)


def inputs_plainly(quantizer: MultiScaleQuantizer, tokens_BL: Tensor) -> Tensor:
    """What a prior reads in training: tokens (B, L) -> (B, L - T of the first scale, C)."""
    total, parts = None, []
    split = quantizer.schedule.split(tokens_BL)
    for scale, size in enumerate(quantizer.schedule.sizes[1:]):
        added = enlarged_codes(quantizer, scale, split[scale])
        total = added if total is None else total + added
        parts.append(F.interpolate(total, size=size, mode="area").flatten(2).transpose(1, 2))
    return torch.cat(parts, dim=1)


def _nearest(quantizer: MultiScaleQuantizer, vectors_TC: Tensor) -> Tensor:
    codes_VC = quantizer.codebook.weight
    if quantizer.settings.unit_codes:
        return (F.normalize(vectors_TC, dim=-1) @ F.normalize(codes_VC, dim=-1).T).argmax(dim=1)
    distances = vectors_TC.square().sum(dim=1, keepdim=True) + codes_VC.square().sum(dim=1)
    return (distances - 2 * vectors_TC @ codes_VC.T).argmin(dim=1)


def _level(level: nn.Module, x_BCHW: Tensor) -> Tensor:
    """A level of the encoder or decoder, or the middle."""
    for part in _parts(level):
        if isinstance(part, ResidualBlock):
            hidden = _conv(part.conv1, _normed(part.norm1, x_BCHW))
            hidden = _conv(part.conv2, _normed(part.norm2, hidden))
            shortcut = part.shortcut
            x_BCHW = (_conv(shortcut, x_BCHW) if isinstance(shortcut, nn.Conv2d) else x_BCHW) + hidden
        elif isinstance(part, AttentionBlock):
            x_BCHW = x_BCHW + _attention(part, x_BCHW)
        elif isinstance(part, Downsample):
            x_BCHW = F.conv2d(F.pad(x_BCHW, (0, 1, 0, 1)), part.conv.weight, part.conv.bias, stride=2)
        elif isinstance(part, Upsample):
            x_BCHW = _conv(part.conv, F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
    return x_BCHW


def _parts(level: nn.Module) -> Iterable[nn.Module]:
    if isinstance(level, Middle):
        yield from (level.block1, level.attention, level.block2)
        return
    assert isinstance(level, Level)
    for number, block in enumerate(level.blocks):
        yield block
        if level.attentions:
            yield level.attentions[number]
    yield level.resample


def _attention(block: AttentionBlock, x_BCHW: Tensor) -> Tensor:
    batch, dim, height, width = x_BCHW.shape
    normed = F.group_norm(x_BCHW, block.norm.num_groups, block.norm.weight, block.norm.bias, block.norm.eps)
    query, key, value = _conv(block.qkv, normed).reshape(batch, 3, dim, height * width).unbind(1)
    weights = (query.transpose(1, 2) @ key).mul(dim**-0.5).softmax(dim=2)
    mixed = (value @ weights.transpose(1, 2)).view(batch, dim, height, width)
    return _conv(block.proj, mixed)


def _conv(layer: nn.Conv2d, x_BCHW: Tensor) -> Tensor:
    return F.conv2d(x_BCHW, layer.weight, layer.bias, padding=layer.padding)


def _normed(norm: nn.GroupNorm, x_BCHW: Tensor) -> Tensor:
    return F.silu(F.group_norm(x_BCHW, norm.num_groups, norm.weight, norm.bias, norm.eps))
