"""Tiny models with weights that matter, and slow references that know nothing of caches, batches or sorting.

Special here: fresh weights of a prior are nearly silent (tiny head, small gates): samples would look the same
whatever the code did. These are drawn large: tokens depend on labels, seeds, places and coarser scales.

Letters: B batch, L tokens of all scales, T tokens of one scale, V codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor, nn

from nextscale.data.loader import Batch
from nextscale.features.classifier import Classifier
from nextscale.features.settings import ClassifierSettings
from nextscale.generate.folder import build_prior
from nextscale.generate.generator import Generator
from nextscale.generate.result import Result
from nextscale.generate.settings import ModelSettings, SamplingSettings
from nextscale.prior.next_scale import NextScalePrior
from nextscale.prior.settings import DiffusionSettings, NextTokenSettings, PriorSettings
from nextscale.prior.transformer import Transformer
from nextscale.rng import token_uniforms
from nextscale.scales import ScaleSchedule
from nextscale.tokenizer.model import Tokenizer
from nextscale.tokenizer.settings import AutoencoderSettings, QuantizerSettings, TokenizerSettings

SIZES = ((1, 1), (2, 2), (3, 3), (4, 4))
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
VOCAB, CODE_DIM = 48, 6
SCHEDULE = ScaleSchedule(sizes=SIZES)
#: Every kind of block.
PRIOR_KINDS: list[dict[str, Any]] = [
    {"shared_adaln": shared, "unit_qk": unit} for shared in (False, True) for unit in (True, False)
]


def tokenizer_settings(*, levels: int = 2, **quantizer: Any) -> TokenizerSettings:
    """A tokenizer of a few thousand weights; every level beyond the first halves the resolution."""
    return TokenizerSettings(
        autoencoder=AutoencoderSettings(
            base_dim=8, multipliers=(1,) * levels, num_res_blocks=1, norm_groups=4, attention=True
        ),
        quantizer=QuantizerSettings(
            **{"vocab_size": VOCAB, "code_dim": CODE_DIM, "num_phis": 4, **quantizer}
        ),
    )


def prior_settings(*, kind: str = "next_scale", **changes: Any) -> Any:
    """Two blocks of width 32."""
    family = {"next_scale": PriorSettings, "next_token": NextTokenSettings, "diffusion": DiffusionSettings}
    return family[kind](**{"depth": 2, "model_dim": 32, "num_heads": 4, **changes})


def model_settings(
    *, sizes: Sequence[tuple[int, int]] = SIZES, prior: dict[str, Any] | None = None, levels: int = 2,
    sampling: dict[str, Any] | None = None, **quantizer: Any,
) -> ModelSettings:  # fmt: skip
    """Ten classes, 48 codes, images of twice as many pixels a side as the last scale has cells."""
    return ModelSettings(
        schedule=ScaleSchedule(sizes=tuple(sizes)),
        tokenizer=tokenizer_settings(levels=levels, **quantizer),
        prior=prior_settings(**(prior or {})),
        class_names=CLASSES,
        sampling=SamplingSettings(**{"guidance": 0.0, **(sampling or {})}),
    )


def random_generator(settings: ModelSettings | None = None, *, seed: int = 0) -> Generator:
    """A model whose weights are drawn from ``seed``."""
    settings = settings or model_settings()
    torch.manual_seed(seed)
    tokenizer = Tokenizer(settings.tokenizer, settings.schedule)
    prior = build_prior(settings)
    make_loud(tokenizer)
    make_loud(prior)
    for module in (tokenizer, prior):
        module.eval().requires_grad_(False)
    return Generator(settings, tokenizer, prior)


def divided_classifier(images_BCHW: Tensor) -> Classifier:
    """Three classes, each of which it sees in some of these images of 8 pixels a side."""
    settings = ClassifierSettings(image_size=8, dims=(8, 8), class_names=("a", "b", "c"))
    classifier = Classifier(settings).eval().requires_grad_(False)
    mean = classifier.features(images_BCHW).mean(dim=0)  # the head shall not see what all have in common
    classifier.head.weight -= (classifier.head.weight @ mean)[:, None] * mean / mean.square().sum()
    return classifier


def random_batch(count: int = 8, seed: int = 0) -> Batch:
    """Images of 8 pixels a side, and random numbers for each."""
    numbers = torch.Generator().manual_seed(seed)
    return Batch(
        torch.rand(count, 3, 8, 8, generator=numbers) * 2 - 1, torch.zeros(count, dtype=torch.int64),
        torch.rand(count, 256, generator=numbers), torch.arange(count),
    )  # fmt: skip


def rows_of(batch: Batch, rows: slice) -> Batch:
    """A part of a batch."""
    return Batch(batch.items[rows], batch.labels_B[rows], batch.uniforms_BR[rows], batch.samples_B[rows])


def tokens_of(result: Result) -> Tensor:
    """The tokens of a result that has some: int64 (B, L)."""
    assert result.tokens_BL is not None
    return result.tokens_BL


def loud_tokenizer(schedule: ScaleSchedule, *, levels: int = 2, **quantizer: Any) -> Tokenizer:
    """A tokenizer alone."""
    tokenizer = Tokenizer(tokenizer_settings(levels=levels, **quantizer), schedule)
    make_loud(tokenizer)
    return tokenizer.eval()


def random_images(tokenizer: Tokenizer, batch: int = 3) -> Tensor:
    """float32 (B, 3, H, W) in [-1, 1] of a tokenizer's size."""
    return torch.rand(batch, 3, *tokenizer.image_size) * 2 - 1


def random_tokens(schedule: ScaleSchedule, batch: int = 3) -> Tensor:
    """int64 (B, L)."""
    return torch.randint(VOCAB, (batch, schedule.num_tokens))


def lone_prior(schedule: ScaleSchedule, *, loud: bool = True, **changes: Any) -> NextScalePrior:
    """A prior alone, of ten classes and codes of width 6."""
    prior = NextScalePrior(
        prior_settings(**changes), schedule, vocab_size=VOCAB, code_dim=CODE_DIM, num_classes=len(CLASSES)
    )
    if loud:
        make_loud(prior)
    return prior


def prior_inputs(schedule: ScaleSchedule, batch: int = 3) -> tuple[Tensor, Tensor]:
    """Labels int64 (B,), the second one unconditional, and teacher inputs float32 (B, L - first, C)."""
    length = schedule.num_tokens - schedule.num_cells[0]
    return torch.tensor([1, 10, 4])[:batch], torch.randn(batch, length, CODE_DIM)


@torch.no_grad()
def make_loud(module: Tokenizer | Transformer) -> None:
    """Outputs about as large as inputs, gates of the order of one, logits of several units."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.normal_(part.weight, std=part.weight[0].numel() ** -0.5)
            if part.bias is not None:
                nn.init.normal_(part.bias, std=0.1)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight)
    if isinstance(module, Tokenizer):
        module.decoder.conv_out.weight.mul_(0.3)  # most pixels then lie inside [-1, 1]
        return
    for name, parameter in module.named_parameters():
        if name.endswith(("position", "modulation_offset", "query_bias", "value_bias")):
            nn.init.normal_(parameter, std=0.5)
    module.head.weight.mul_(2)


def slow_filter(logits: Sequence[float], *, top_k: int, top_p: float, temperature: float) -> list[float]:
    """The probabilities of one token's codes after temperature, top-k and top-p, by lists and loops."""
    heights = [value / temperature for value in logits]
    kept = set(range(len(heights)))
    if top_k > 0:
        least = sorted(heights, reverse=True)[top_k - 1]
        kept = {code for code in kept if heights[code] >= least}
    if top_p < 1:
        probabilities, gathered, chosen = _softmax(heights, kept), 0.0, set()
        for code in sorted(kept, key=lambda code: (-heights[code], code)):
            if gathered >= top_p and chosen:
                break
            chosen.add(code)
            gathered += probabilities[code]
        kept = chosen
    return _softmax(heights, kept)


def _softmax(heights: Sequence[float], kept: set[int]) -> list[float]:
    highest = max(heights[code] for code in kept)
    weights = [math.exp(value - highest) if code in kept else 0.0 for code, value in enumerate(heights)]
    return [weight / math.fsum(weights) for weight in weights]


def slow_draw(probabilities: Sequence[float], uniform: float) -> int:
    """The first code whose cumulative probability exceeds the uniform number."""
    gathered = 0.0
    for code, probability in enumerate(probabilities):
        gathered += probability
        if gathered > uniform:
            return code
    return max(code for code, probability in enumerate(probabilities) if probability)


@torch.no_grad()
def slow_sample(
    generator: Generator, label: int, seed: int, *, guidance: float = 0.0, top_k: int = 0, top_p: float = 1.0,
    temperature: float = 1.0, num_unguided_scales: int = 0,
) -> Tensor:  # fmt: skip
    """One image's tokens (1, L) from whole passes over all scales: no cache, no batch, one loop per token.

    The scales that are not yet drawn hold random tokens, so that a prior which looks ahead is found out.
    """
    schedule, vocab_size = generator.settings.schedule, generator.settings.tokenizer.quantizer.vocab_size
    tokens = torch.randint(
        vocab_size, (1, schedule.num_tokens), generator=torch.Generator().manual_seed(seed)
    )
    uniforms = token_uniforms(seed, schedule.num_tokens)
    for scale in range(schedule.num_scales):
        inputs = generator.tokenizer.teacher_inputs(tokens)
        conditional = generator.prior(torch.tensor([label]), inputs)
        unconditional = generator.prior(torch.tensor([len(generator.class_names)]), inputs)
        weight = guidance * (scale / (schedule.num_scales - 1) if schedule.num_scales > 1 else 1)
        if schedule.num_scales - scale <= num_unguided_scales:
            weight = 0
        logits = ((1 + weight) * conditional - weight * unconditional)[0]
        for place in range(schedule.offsets[scale], schedule.offsets[scale + 1]):
            chances = slow_filter(logits[place].tolist(), top_k=top_k, top_p=top_p, temperature=temperature)
            tokens[0, place] = slow_draw(chances, uniforms[place])
    return tokens


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """Soft blobs of colour, as smooth as a photograph; ``size`` is (height, width)."""
    coarse = numpy.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=numpy.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


def write_pictures(folder: Path, count: int, size: tuple[int, int], *, num_classes: int) -> Path:
    """PNG files of different pictures, in one folder per class."""
    for index in range(count):
        home = folder / f"class {index % num_classes:02d}"
        home.mkdir(parents=True, exist_ok=True)
        picture(index, size).save(home / f"{index:03d}.png")
    return folder
