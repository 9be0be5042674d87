"""Signs that a tokenizer's training goes wrong, as lines for people that say what to try.

Special here: every alarm follows from the scores of an evaluation and from what a checkpoint holds, so a
resumed run raises the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping

from nextscale.train.adversary import Adversary
from nextscale.train.settings import TokenizerRun

_LOW_USAGE = 0.1
#: The discriminator's share of right answers, a mean over some hundred steps: too good, or mere chance.
_PERFECT, _CHANCE = 0.98, 0.52
#: Steps after which those means say something.
_SETTLED = 300


def usage_alarms(scores: Mapping[str, float], run: TokenizerRun) -> list[str]:
    """Scales that use less than a tenth of the codes that they could use.

    Args:
        scores: ``usage_0``, ``usage_1`` and so on, each against the smaller of the number of codes and that
            of the scale's own tokens over the pass; see `nextscale.evaluate.reconstruction.CodeUsage`.
        run: for the advice.
    """
    low = [
        scale for scale in range(run.schedule.num_scales) if scores.get(f"usage_{scale}", 1.0) < _LOW_USAGE
    ]
    if not low:
        return []
    named = ", ".join(
        f"{run.schedule.sizes[scale][0]}x{run.schedule.sizes[scale][1]} uses {scores[f'usage_{scale}']:.1%}"
        for scale in low
    )
    advice = [
        "losses.reset_after 50" if not run.losses.reset_after else "",
        "codes.ema_decay 0.99" if not run.codes.ema_decay else "",
        "codes.scale_dropout 0.1" if not run.codes.scale_dropout and run.schedule.num_scales > 1 else "",
        f"tokenizer.quantizer.vocab_size {max(2, run.tokenizer.quantizer.vocab_size // 4)}",
    ]
    return [f"few codes: {named} of what it could use; try {', '.join(item for item in advice if item)}"]


def adversary_alarms(adversary: Adversary) -> list[str]:
    """A weight that stands at its limit, and a discriminator that was perfect or guessed for long."""
    settings = adversary.settings
    found: list[str] = []
    if int(adversary.next_step) <= settings.start * adversary.num_steps:
        return found
    weight = float(adversary.adaptive_weight)
    if weight >= settings.max_weight:
        found.append(
            f"adaptive weight at its upper limit {settings.max_weight:g}: the discriminator hardly moves the "
            "decoder; try a lower discriminator.max_weight, or a later discriminator.start"
        )
    elif weight <= settings.min_weight:
        found.append(
            f"adaptive weight at its lower limit {settings.min_weight:g}: the adversarial gradient is far "
            "larger than that of the reconstruction; try discriminator.lr_factor 0.5 or "
            "discriminator.spectral_norm true"
        )
    if int(adversary.next_step) < settings.start * adversary.num_steps + _SETTLED:
        return found
    originals, reconstructions = adversary.accuracy_2.tolist()
    rates = f"finds {originals:.1%} of originals and {reconstructions:.1%} of reconstructions"
    if min(originals, reconstructions) > _PERFECT:
        found.append(
            f"discriminator perfect: {rates}, so it teaches little; try a lower discriminator.lr_factor, a "
            "higher discriminator.augment.cut_out, discriminator.spectral_norm true, or a later "
            "discriminator.start"
        )
    elif (originals + reconstructions) / 2 < _CHANCE:
        found.append(
            f"discriminator at chance: {rates}, so it teaches nothing; try a higher discriminator.lr_factor, "
            "a larger discriminator.base_dim, or weaker discriminator.augment"
        )
    return found
