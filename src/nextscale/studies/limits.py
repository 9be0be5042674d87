"""What the tokenizer of each family can give at best: validation images through it and back.

Special here: a family that draws tokens is held to what its tokens keep, diffusion to what the features
before quantisation keep, since these go to the decoder as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nextscale.data.sources import Source
from nextscale.evaluate.images import Reconstructions, SourceImages
from nextscale.evaluate.measure import make_reference
from nextscale.evaluate.scoring import Scorer
from nextscale.generate.folder import load_tokenizer, read_settings
from nextscale.models import find_model
from nextscale.studies.families import Plan
from nextscale.studies.quality import Result
from nextscale.studies.runs import Voice
from nextscale.studies.settings import ComparisonStudy


def score_limits(
    study: ComparisonStudy, plans: Sequence[Plan], validation: Source, scorer: Scorer, *, folder: Path,
    voice: Voice,
) -> dict[str, Result]:  # fmt: skip
    """Reconstructions of the validation images, held against these same images, by family.

    Each result is kept in a folder of its own as soon as it is there.

    Args:
        study: its settings.
        plans: of the families.
        validation: the images, of which ``num_samples`` are taken at most.
        scorer: that of the samples; its reference is not used.
        folder: of the study.
        voice: of the study.

    Raises:
        ValueError: images that cannot be scored.
    """
    originals = SourceImages(validation, size=plans[0].image_size, limit=study.num_samples)
    name = study.data.validation or f"held out of {study.data.source}"
    reference = make_reference(
        originals, scorer.extractor, features=study.features, kind="validation", name=name,
        ranks=scorer.ranks, progress="validation images" if voice.progress else None,
    )  # fmt: skip
    scorer, results = replace(scorer, reference=reference), {}
    for plan in plans:
        voice.say(f"reconstructions of {plan.name}")
        home = find_model(plan.prior.tokenizer_from)
        tokenizer = load_tokenizer(home, read_settings(home)).to(scorer.ranks.device)
        quantized = plan.prior.prior.kind != "diffusion"
        results[plan.name] = scorer(
            Reconstructions(tokenizer, originals, quantized=quantized), description={"quantized": quantized},
            folder=folder / "limits" / plan.name, name=plan.name,
        )  # fmt: skip
    return results
