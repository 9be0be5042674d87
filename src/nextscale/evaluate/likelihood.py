"""How many bits a model needs for the tokens of images, and which class explains each image best.

Letters: B batch, N images, S scales, L tokens of all scales, V codes, C width of a code, K classes.
Special here: a next-scale model is a generative classifier. log p(tokens | class) is one pass over the image,
so a pass per class and the largest of them give a class, by Bayes' rule for classes equally likely at first.
The bits are those of the tokens: what the tokenizer lost is not counted, so they are no likelihood of the
pixels, and models with different tokenizers cannot be compared by them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy
import torch
from torch import Tensor

from nextscale.data.loader import evaluation_batches
from nextscale.data.sources import Source
from nextscale.evaluate.prediction import teacher_inputs, token_losses
from nextscale.generate.folder import Prior
from nextscale.generate.result import Result
from nextscale.pixels import to_model
from nextscale.prior.diffusion import DiffusionPrior
from nextscale.prior.next_scale import NextScalePrior
from nextscale.prior.next_token import NextTokenPrior
from nextscale.tokenizer.model import Tokenizer

#: Of a standard normal variable: 95 % lie within.
_Z95 = 1.959964
#: Those that give probabilities of tokens.
TokenPrior = NextScalePrior | NextTokenPrior


@torch.no_grad()
def label_bits(prior: TokenPrior, labels_B: Tensor, tokens_BL: Tensor, inputs: Tensor) -> Tensor:
    """-log2 p(tokens of a scale | label, tokens of the coarser ones): float64 (B, S).

    Args:
        prior: in evaluation mode.
        labels_B: int64 in [0, K]; K is no class in particular.
        tokens_BL: int64.
        inputs: what the prior reads, `nextscale.evaluate.prediction.teacher_inputs`.
    """
    losses_BL = token_losses(prior(labels_B, inputs), tokens_BL).double()
    return torch.stack([part.sum(dim=1) for part in prior.schedule.split(losses_BL)], dim=1) / math.log(2)


def image_bits(tokenizer: Tokenizer, prior: Prior, labels_B: Tensor, tokens_BL: Tensor) -> Tensor:
    """-log2 p(all tokens | label) of images whose tokens are known: float64 (B,).

    Args:
        tokenizer: of the tokens.
        prior: in evaluation mode.
        labels_B: int64 in [0, K]; K is no class in particular.
        tokens_BL: int64.

    Raises:
        ValueError: a diffusion prior, which knows no probabilities of tokens.
    """
    if isinstance(prior, DiffusionPrior):
        raise ValueError("a diffusion prior gives no likelihood of tokens: use a model of another kind")
    return label_bits(prior, labels_B, tokens_BL, teacher_inputs(tokenizer, prior, tokens_BL)).sum(dim=1)


class EditLikelihood:
    """Scores images by log2 p(all tokens | label), for `nextscale.generate.rejection.draw_edits`."""

    def __init__(self, tokenizer: Tokenizer, prior: Prior) -> None:
        self._tokenizer, self._prior = tokenizer, prior

    def __call__(self, result: Result, labels_B: Tensor) -> Tensor:
        """Float64 (B,); ValueError for a prior that draws no tokens."""
        if result.tokens_BL is None:
            raise ValueError("these images were made without tokens, whose likelihood could be told")
        return -image_bits(self._tokenizer, self._prior, labels_B, result.tokens_BL)


def class_bits(prior: TokenPrior, tokens_BL: Tensor, inputs: Tensor, *, batch_size: int) -> Tensor:
    """`label_bits` under every class: float64 (B, K, S). Logits (batch_size, L, V) are in memory at a time.

    Args:
        prior: in evaluation mode.
        tokens_BL: int64.
        inputs: as for `label_bits`.
        batch_size: pairs of image and class at a time.
    """
    count, classes = len(tokens_BL), prior.num_classes
    device = tokens_BL.device
    images = torch.arange(count, device=device).repeat_interleave(classes)
    labels = torch.arange(classes, device=device).repeat(count)
    parts = [
        label_bits(prior, label, tokens_BL[image], inputs[image])
        for image, label in zip(images.split(batch_size), labels.split(batch_size), strict=True)
    ]
    return torch.cat(parts).view(count, classes, -1)


@torch.no_grad()
def likelihood_scores(
    tokenizer: Tokenizer, prior: TokenPrior, source: Source, *, limit: int | None = None,
    batch_size: int = 64, classify: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Bits of the tokens of center crops under their own labels, and what the model takes them for.

    Args:
        tokenizer: in evaluation mode, on the device of the prior.
        prior: in evaluation mode.
        source: images whose labels are those of the prior.
        limit: images at most, spread over the source.
        batch_size: images, or pairs of image and class, at a time.
        classify: try all classes too, for K times the work.

    Returns:
        Means over the images: ``bits_per_image`` (with its 95 % interval), ``bits_per_scale``, and
        ``bits_per_token`` and ``bits_per_pixel_value`` (3 H W values) of all scales together. With
        ``classify`` the ``classification``: ``accuracy`` (with its 95 % interval), ``chance``, and
        ``accuracy_up_to_scale``, where the finer scales do not count.
    """
    device, bits, labels = prior.position.device, [], []
    for pixels, given in evaluation_batches(
        source, size=tokenizer.image_size, batch_size=batch_size, limit=limit
    ):
        tokens_BL = tokenizer.encode(to_model(pixels).to(device))
        inputs = teacher_inputs(tokenizer, prior, tokens_BL)
        if classify:
            bits.append(class_bits(prior, tokens_BL, inputs, batch_size=batch_size).cpu())
        else:
            own = label_bits(prior, torch.from_numpy(given).to(device), tokens_BL, inputs)
            bits.append(own[:, None].cpu())
        labels.append(given)
    bits_NKS, labels_N = torch.cat(bits).numpy(), numpy.concatenate(labels)
    rows = numpy.arange(len(labels_N))
    bits_NS = bits_NKS[rows, labels_N if classify else 0]
    scores = _bits(bits_NS, num_tokens=tokenizer.schedule.num_tokens, image_size=tokenizer.image_size)
    if classify:
        guesses_SN = bits_NKS.cumsum(axis=2).argmin(axis=1).T
        scores["classification"] = _classification(guesses_SN == labels_N, num_classes=prior.num_classes)
    return scores


def _bits(bits_NS: numpy.ndarray, *, num_tokens: int, image_size: tuple[int, int]) -> dict[str, Any]:
    per_image_N = bits_NS.sum(axis=1)
    mean, count = float(per_image_N.mean()), len(per_image_N)
    half = _Z95 * float(per_image_N.std(ddof=1)) / count**0.5 if count > 1 else math.nan
    return {
        "num_images": count,
        "num_tokens": num_tokens,
        "bits_per_image": mean,
        "bits_per_image_interval_95": [mean - half, mean + half] if count > 1 else None,
        "bits_per_scale": bits_NS.mean(axis=0).tolist(),
        "bits_per_token": mean / num_tokens,
        "bits_per_pixel_value": mean / (3 * image_size[0] * image_size[1]),
    }


def _classification(right_SN: numpy.ndarray, *, num_classes: int) -> dict[str, Any]:
    right = int(right_SN[-1].sum())
    return {
        "accuracy": right / right_SN.shape[1],
        "accuracy_interval_95": list(wilson_interval(right, right_SN.shape[1])),
        "chance": 1 / num_classes,
        "accuracy_up_to_scale": right_SN.mean(axis=1).tolist(),
    }


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score (1927): ``right`` of ``count``, at least 1."""
    share, spread = right / count, _Z95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = _Z95 / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return middle - half, middle + half
