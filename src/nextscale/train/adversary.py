"""The adversarial half of a tokenizer's training: two terms of one loss, and the weight between them.

Letters: B batch, R uniform numbers, H W pixels, h w patches.
Special here: there is one backward pass. The tokenizer's term sees the discriminator with detached
parameters, the discriminator's term sees detached reconstructions, so neither pulls at the other. The
adaptive weight of a step was measured in the step before: then micro-batches and processes only have to add
up gradients (`totals`), and every part of a batch uses the same weight.

The discriminator does not train before `start`: on the blurs of the first steps it would become so sure
that the tokenizer learns nothing from it. From there it trains at full strength, while its weight in the
tokenizer's loss grows over the warm-up, which is its head start.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from nextscale.train.adversary_settings import DiscriminatorSettings
from nextscale.train.augment import NUM_AUGMENT_UNIFORMS, augment
from nextscale.train.discriminator import improve_spectral_norms

#: How many uniform numbers of each sample are read: originals and reconstructions are disturbed apart.
NUM_ADVERSARY_UNIFORMS = 2 * NUM_AUGMENT_UNIFORMS
_SMALLEST, _ACCURACY_DECAY = 1e-12, 0.99


class Adversary:
    """A discriminator, its weight against the other losses, and how often it was right lately."""

    def __init__(
        self, discriminator: nn.Module, settings: DiscriminatorSettings, *, last_layer: Tensor,
        weight: float, num_steps: int, view: Callable[[Tensor], Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Make the adversary of a tokenizer.

        Args:
            discriminator: what is trained to judge.
            settings: of its training.
            last_layer: the decoder's last kernel, at which gradients are compared.
            weight: of the adversarial loss.
            num_steps: of the whole run.
            view: frozen, what the discriminator is given of images; None: the images themselves.
        """
        self.view = view or _whole
        self.discriminator, self.settings, self.last_layer = discriminator, settings, last_layer
        self.weight, self.num_steps = weight, num_steps
        device = last_layer.device
        self.next_step = torch.zeros((), dtype=torch.int64)
        self.adaptive_weight = torch.zeros((), device=device)  # nothing was measured yet
        self.accuracy_2 = torch.full((2,), 0.5, device=device)  # on originals, on reconstructions
        self.totals = {
            "reconstruction_gradient": torch.zeros_like(last_layer, requires_grad=False),
            "adversarial_gradient": torch.zeros_like(last_layer, requires_grad=False),
            "patches_right_2": torch.zeros(2, device=device),
            "patches": torch.zeros((), device=device),
        }

    def takes_part(self, step: int) -> bool:
        """Whether the discriminator trains in a step."""
        return step >= self.settings.start * self.num_steps

    def share(self, step: int) -> float:
        """How much of its weight the adversarial loss has in a step: 0 before the start, then rising to 1."""
        if not self.takes_part(step):
            return 0.0
        passed = step - self.settings.start * self.num_steps + 1
        return min(1.0, passed / max(self.settings.warmup_share * self.num_steps, 1))

    def loss(
        self, decoded_BCHW: Tensor, images_BCHW: Tensor, *, reconstruction: Tensor, uniforms_BR: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Both terms of the next step, and what to log; adds to the totals.

        Args:
            decoded_BCHW: reconstructions with gradient, float32 (B, 3, H, W).
            images_BCHW: originals.
            reconstruction: what the tokenizer loses by its reconstructions, against which the weight is set.
            uniforms_BR: (B, `NUM_ADVERSARY_UNIFORMS`) in [0, 1).
        """
        step, zero = int(self.next_step), decoded_BCHW.new_zeros(())
        if not self.takes_part(step):
            return zero, self._numbers(zero, zero, zero)
        settings = self.settings.augment
        for_real_BR, for_fake_BR = uniforms_BR.split(NUM_AUGMENT_UNIFORMS, dim=1)
        frozen = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        seen = self.view(augment(decoded_BCHW, for_fake_BR, settings))
        adversarial = -functional_call(self.discriminator, frozen, (seen,)).mean()
        self._measure(reconstruction, adversarial)

        real_Bhw = self.discriminator(self._fixed_view(augment(images_BCHW, for_real_BR, settings)))
        fake_Bhw = self.discriminator(seen.detach())
        judged = hinge_loss(real_Bhw, fake_Bhw)
        if self.settings.consistency:
            before = [self.discriminator(self._fixed_view(item)) for item in (images_BCHW, decoded_BCHW)]
            judged = judged + self.settings.consistency * sum(
                (one.mean(dim=(1, 2)) - other.mean(dim=(1, 2))).square().mean()
                for one, other in zip(before, (real_Bhw, fake_Bhw), strict=True)
            )
        self._count(real_Bhw, fake_Bhw)
        weight = self.weight * self.share(step) * self.adaptive_weight
        return weight * adversarial + judged, self._numbers(adversarial, judged, weight)

    @torch.no_grad()
    def _fixed_view(self, images_BCHW: Tensor) -> Tensor:
        return self.view(images_BCHW.detach())

    def _numbers(self, adversarial: Tensor, judged: Tensor, weight: Tensor) -> dict[str, Tensor]:
        return {
            "adversarial": adversarial, "discriminator_loss": judged, "adversarial_weight": weight,
            "originals_found": self.accuracy_2[0], "reconstructions_found": self.accuracy_2[1],
        }  # fmt: skip

    def _measure(self, reconstruction: Tensor, adversarial: Tensor) -> None:
        """Add this micro-batch's gradients at the decoder's last kernel to the totals."""
        for name, term in (("reconstruction", reconstruction), ("adversarial", adversarial)):
            (gradient,) = torch.autograd.grad(term, self.last_layer, retain_graph=True)
            self.totals[f"{name}_gradient"] += gradient

    @torch.no_grad()
    def _count(self, real_Bhw: Tensor, fake_Bhw: Tensor) -> None:
        self.totals["patches_right_2"] += torch.stack([(real_Bhw > 0).sum(), (fake_Bhw < 0).sum()])
        self.totals["patches"] += real_Bhw.numel()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Make the next step's weight of the gradients in the totals, and clear these.

        The weight is |gradient of the reconstruction| / |gradient of the adversarial term| (Esser et al.
        2020, arXiv 2012.09841, equation 7), clamped. The spectral norms improve here, once.
        """
        self.next_step.fill_(step + 1)
        if not self.takes_part(step):
            return
        totals = self.totals
        norms = [totals[f"{name}_gradient"].norm() for name in ("reconstruction", "adversarial")]
        ratio = norms[0] / norms[1].clamp_min(_SMALLEST)
        ratio = ratio.clamp(self.settings.min_weight, self.settings.max_weight)
        self.adaptive_weight = torch.where(ratio.isfinite(), ratio, self.adaptive_weight)
        self.accuracy_2 = self.accuracy_2.lerp(
            totals["patches_right_2"] / totals["patches"].clamp_min(1), 1 - _ACCURACY_DECAY
        )
        improve_spectral_norms(self.discriminator)
        for total in totals.values():
            total.zero_()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold besides the discriminator."""
        names = ("next_step", "adaptive_weight", "accuracy_2")
        return {name: getattr(self, name) for name in names}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        for name, mine in self.state().items():
            setattr(self, name, tensors[name].to(mine.device))


def _whole(images_BCHW: Tensor) -> Tensor:
    return images_BCHW


def hinge_loss(real_Bhw: Tensor, fake_Bhw: Tensor) -> Tensor:
    """Half of what lacks to 1 on originals and to -1 on reconstructions (Lim and Ye, arXiv 1705.02894)."""
    return 0.5 * (F.relu(1 - real_Bhw).mean() + F.relu(1 + fake_Bhw).mean())
