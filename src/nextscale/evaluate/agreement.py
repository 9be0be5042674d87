"""Does a classifier see in an image what it was made to show?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch

from nextscale.features.classifier import Classifier
from nextscale.pixels import to_model


@torch.no_grad()
def class_agreement(
    images_BHWC: numpy.ndarray, labels: Sequence[int], classifier: Classifier, *, batch_size: int = 100
) -> numpy.ndarray:
    """Whether the classifier assigns each image to its label: bool (B,).

    Args:
        images_BHWC: uint8 (B, H, W, 3) of the classifier's size.
        labels: class numbers in the classifier's order.
        classifier: in evaluation mode.
        batch_size: images at a time.

    Raises:
        ValueError: images of another size.
    """
    guesses = [
        classifier.assign(to_model(images_BHWC[start : start + batch_size]))
        for start in range(0, len(images_BHWC), batch_size)
    ]
    agreed: numpy.ndarray = torch.cat(guesses).cpu().numpy() == numpy.asarray(labels)
    return agreed
