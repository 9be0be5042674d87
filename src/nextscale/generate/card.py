"""The card of a model: the README.md in its folder, which the Hugging Face hub reads too. No torch here.

Special here: the front matter is YAML whose values are written as JSON, which is YAML as well; so no YAML
library is needed, and nothing that a name holds can break out of its place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nextscale.generate.settings import ModelSettings

_PER_SCALE = ("codes_used_", "usage_")  # too many to read


class CardScore(BaseModel):
    """One figure of the card."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(min_length=1, max_length=100)
    value: float = Field(allow_inf_nan=False)
    interval: tuple[float, float] | None = Field(None, description="95 %, where there is one")


class CardSettings(BaseModel):
    """What a card says besides what a model's settings say."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field("", max_length=100, description="of the model; empty: a nextscale model")
    license: str = Field("", pattern=r"^[a-z0-9.-]*$", description="as the hub writes it, such as apache-2.0")
    dataset: str = Field(
        "", max_length=200, description="what the scores are held against, or it was trained on"
    )
    scores: tuple[CardScore, ...] = ()
    details: tuple[str, ...] = Field((), description="a line each: how the scores were measured")


def read_scores(path: Path, *, about: CardSettings | None = None) -> CardSettings:
    """What a card says, with the scores of a ``scores.json`` that ``nextscale evaluate --out`` wrote.

    Raises:
        ValueError: no such file, or nothing in it that is a score.
    """
    try:
        given = json.loads(path.read_text())
        given = given if isinstance(given, dict) else {}
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): give the scores.json of nextscale evaluate --out"
        ) from error
    try:
        scores = _scores_in(given)
        found = CardSettings(
            scores=tuple(scores), dataset=_reference_in(given), details=tuple(_details_in(given))
        )
    except ValidationError as error:
        raise ValueError(f"{path} holds no scores ({' '.join(str(error).split())})") from error
    if not scores:
        raise ValueError(f"{path} holds no scores: give the scores.json of nextscale evaluate --out")
    said = {} if about is None else {name: getattr(about, name) for name in about.model_fields_set}
    return found.model_copy(update=said)


def _scores_in(given: Mapping[str, Any]) -> list[CardScore]:
    """The scores of an evaluation against a reference, or of one without."""
    parts = [
        given.get("scores"),
        given.get("reconstruction"),
        _agreement(given),
        _agreement(given.get("samples")),
    ]
    found = []
    for name, score in (pair for part in parts if isinstance(part, dict) for pair in part.items()):
        value, interval = (
            (score, None) if not isinstance(score, dict) else (score.get("value"), _bounds(score))
        )
        if isinstance(value, bool) or not isinstance(value, int | float) or name.startswith(_PER_SCALE):
            continue
        found.append(CardScore(name=name, value=float(value), interval=interval))
    return found


def _agreement(given: Any) -> dict[str, Any]:
    """The share of samples that a classifier assigns to their label, where it was measured."""
    name = "class_agreement"
    return {name: given[name]} if isinstance(given, dict) and name in given else {}


def _bounds(score: Mapping[str, Any]) -> tuple[float, float] | None:
    return (score["low"], score["high"]) if {"low", "high"} <= score.keys() else None


def _reference_in(given: Mapping[str, Any]) -> str:
    """What the scores are held against, without the path that it had on somebody's machine."""
    reference = given.get("reference")
    if not isinstance(reference, dict):
        return Path(str(given.get("data", ""))).name
    name = Path(str(reference.get("source"))).name
    return f"{reference.get('count')} {reference.get('kind')} images of {name}"


def _details_in(given: Mapping[str, Any]) -> list[str]:
    """The settings behind the scores."""
    samples = given.get("samples")
    found = {**given, **(samples if isinstance(samples, dict) else {})}
    names = ("scored", "protocol", "count", "first_seed", "sampling", "dtype", "versions")
    return [f"{name}: {json.dumps(found[name])}" for name in names if found.get(name) is not None]


def card_text(settings: ModelSettings, about: CardSettings | None = None) -> str:
    """The whole card."""
    about = about or CardSettings()
    front = "\n".join(f"{name}: {_yaml(value)}" for name, value in _front_matter(settings, about).items())
    return f"---\n{front}\n---\n\n" + "\n".join(card_body(settings, about)) + "\n"


def _yaml(value: Any) -> str:
    """JSON, but for small numbers: YAML takes ``1e-07`` for a word."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_yaml(name)}: {_yaml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_yaml(item) for item in value) + "]"
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("e", ".0e") if isinstance(value, float) and "." not in text else text


def _front_matter(settings: ModelSettings, about: CardSettings) -> dict[str, Any]:
    """What the hub sorts models by."""
    kind = settings.prior.kind if settings.prior else None
    tags = ["nextscale", "image-generation", *([kind.replace("_", "-")] if kind else ["image-tokenizer"])]
    if kind and len(settings.class_names) > 1:
        tags.append("class-conditional")
    front: dict[str, Any] = {"library_name": "nextscale", "tags": tags}
    front["pipeline_tag"] = "unconditional-image-generation" if kind else "image-feature-extraction"
    if about.license:
        front["license"] = about.license
    if about.scores:
        metrics = [{"type": score.name, "name": score.name, "value": score.value} for score in about.scores]
        dataset = about.dataset or "as the card says"
        result = {
            "task": {"type": front["pipeline_tag"]}, "dataset": {"type": "images", "name": dataset},
            "metrics": metrics,
        }  # fmt: skip
        front["model-index"] = [{"name": about.name or "nextscale model", "results": [result]}]
    return front


def card_body(settings: ModelSettings, about: CardSettings | None = None) -> list[str]:
    """The lines below the front matter."""
    about = about or CardSettings()
    height, width = settings.schedule.latent_size
    reduction, quantizer = settings.tokenizer.autoencoder.reduction, settings.tokenizer.quantizer
    lines = [
        f"# {about.name or 'A nextscale model'}",
        "",
        f"- images: {height * reduction} x {width * reduction} pixels",
        f"- scales: {', '.join(f'{h}x{w}' for h, w in settings.schedule.sizes)}",
        f"- codes: {quantizer.vocab_size} of width {quantizer.code_dim}",
        f"- classes: {len(settings.class_names)}",
    ]
    if settings.prior is not None:
        lines.append(
            f"- prior: {settings.prior.kind}, depth {settings.prior.depth}, width {settings.prior.width}"
        )
    lines += ["", "```python", "from nextscale import Generator", ""]
    lines += ['generator = Generator.load("this folder, or hub:owner/name")']
    if settings.prior is not None:
        lines += ['generator(labels=[None], seeds=[0]).save("image.png")']
    lines += ["```"]
    if about.scores:
        lines += [
            "",
            f"## Scores{f', against {about.dataset}' if about.dataset else ''}",
            "",
            *score_lines(about),
        ]
    return lines


def score_lines(about: CardSettings) -> list[str]:
    """A table of the scores, and how they were measured."""
    rows = [f"| {_cell(score.name)} | {score.value:.5g} | {_interval(score)} |" for score in about.scores]
    details = [f"- {detail}" for detail in about.details]
    return ["| score | value | 95 % |", "|---|---|---|", *rows, "", *details]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _interval(score: CardScore) -> str:
    return "" if score.interval is None else f"{score.interval[0]:.5g} to {score.interval[1]:.5g}"
