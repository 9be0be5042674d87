"""The discriminator itself, its loss, and images that nothing disturbs."""

from __future__ import annotations

import pytest
import torch

from nextscale.train.adversary import hinge_loss
from nextscale.train.adversary_settings import DiscriminatorSettings
from nextscale.train.augment import augment
from nextscale.train.discriminator import Discriminator

PLAIN = {"augment": {"colour": 0, "shift": 0, "cut_out": 0}}


def test_every_image_is_judged_by_itself() -> None:
    discriminator = Discriminator(DiscriminatorSettings(base_dim=8), (16, 24))
    images = torch.rand(4, 3, 16, 24)
    logits = discriminator(images)
    assert logits.shape == (4, 2, 3)
    assert torch.allclose(discriminator(images[1:2]), logits[1:2], atol=1e-6)


def test_the_hinge_loss() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3))


def test_without_disturbance_images_stay() -> None:
    images = torch.rand(2, 3, 8, 8)
    assert augment(images, torch.rand(2, 7), DiscriminatorSettings(**PLAIN).augment) is images
