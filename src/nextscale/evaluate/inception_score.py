"""How sure a classifier is of each image, and how varied its guesses are.

Letters: N images, K classes.
Special here: the classifier decides what the number means, so it decides its name too. Of the Inception
network the logits are taken without their bias, as the reference implementation does.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: What the score is called -> which output of an extractor it is made of.
LOGITS = {"IS": "logits_unbiased", "IS-CIFAR": "logits"}


@torch.no_grad()
def inception_score(logits_NK: Tensor, *, split_size: int = 5000) -> tuple[float, float]:
    """The score's mean and standard deviation over splits; between 1 and K, more is better.

    exp of the mean over images of KL(p(y|x) || p(y)): Salimans et al. 2016, arXiv 1606.03498, section 4.
    Images are split in their order, which should therefore not be that of the classes; what is left over is
    a split of its own and counts as much, as in the reference implementation.

    Args:
        logits_NK: float, before the softmax.
        split_size: images per split; the published scores of 50,000 images use 5,000.

    Raises:
        ValueError: no images, values that are not finite, or a split of less than one image.
    """
    if logits_NK.ndim != 2 or not len(logits_NK) or split_size < 1 or not logits_NK.isfinite().all():
        raise ValueError(
            f"expected finite logits (N, K) of at least one image and splits of at least one, given "
            f"{tuple(logits_NK.shape)} and {split_size}"
        )
    scores = []
    for part_NK in logits_NK.split(split_size):
        logs_NK = part_NK.double().log_softmax(dim=1)
        mean_K = logs_NK.exp().mean(dim=0)
        terms_NK = logs_NK.exp() * (logs_NK - mean_K.log())
        divergence_N = terms_NK.nan_to_num(nan=0.0).sum(dim=1)  # 0 log 0 where no image has a chance
        scores.append(divergence_N.mean().exp())
    per_split = torch.stack(scores)
    return float(per_split.mean()), float(per_split.std(correction=0))
