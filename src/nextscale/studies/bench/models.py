"""Models of a given size with random weights, and whether they fit into a machine.

Letters: B batch, T tokens of one scale, V codes.
Special here: weights are drawn so that numbers stay of the order of one in every layer; what a model would
show is no matter, what it costs is that of a trained one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import nn

from nextscale.generate.folder import Prior, build_prior
from nextscale.generate.request import Request, Sampling, build_request
from nextscale.generate.settings import ModelSettings
from nextscale.prior.cost import cost
from nextscale.scales import ScaleSchedule
from nextscale.studies.bench.clock import free_bytes
from nextscale.studies.bench.settings import WORD, Sized
from nextscale.tokenizer.model import Tokenizer
from nextscale.train.cost import decoder_parts
from nextscale.train.memory import cache_bytes

Module = TypeVar("Module", bound=nn.Module)
#: Bytes that drawing takes per logit: sorted copies, their order, probabilities and sums in float64.
_DRAWING = 60
#: Branches of guidance; largest maps that the decoder holds at once; what a growing cache takes / its end.
_BRANCHES, _MAPS, _GROWING = 2, 4, 1.2


def random_tokenizer(model: ModelSettings, device: torch.device) -> Tokenizer:
    """A tokenizer with random weights, frozen."""
    with torch.device("meta"):
        tokenizer = Tokenizer(model.tokenizer, model.schedule)
    return _filled(tokenizer, device)


def random_prior(model: ModelSettings, device: torch.device) -> Prior:
    """A prior of any family with random weights, frozen."""
    with torch.device("meta"):
        prior = build_prior(model)
    return _filled(prior, device)


@torch.no_grad()
def _filled(module: Module, device: torch.device) -> Module:
    module.to_empty(device=device)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if name.endswith("log_scale_N11"):
            value.fill_(math.log(4))
        elif value.ndim > 1:
            value.normal_(std=(value.numel() / len(value)) ** -0.5)
        else:
            value.fill_(1.0 if name.rpartition(".")[2] in ("weight", "deviation_C") else 0.0)
    return module.eval().requires_grad_(False)


def request_for(
    model: ModelSettings, batch: int, device: torch.device, sampling: Sampling | None = None
) -> Request:
    """Images of the first classes, with the model's own sampling settings."""
    return build_request(
        [number % len(model.class_names) for number in range(batch)], range(batch), model,
        overrides=sampling or {}, smooth=False, device=device,
    )  # fmt: skip


def one_map(model: ModelSettings, prior: dict[str, object]) -> ModelSettings:
    """The same model with the last scale alone, and another family's prior."""
    quantizer = model.tokenizer.quantizer.model_copy(update={"num_phis": 1, "phi_of_scale": None})
    tree = model.model_dump() | {
        "schedule": ScaleSchedule(sizes=(model.schedule.latent_size,)),
        "tokenizer": model.tokenizer.model_copy(update={"quantizer": quantizer}),
        "prior": prior,
        "sampling": {},
    }
    return ModelSettings.model_validate(tree)


def num_parameters(model: ModelSettings) -> int:
    """Of the prior."""
    assert model.prior is not None
    quantizer = model.tokenizer.quantizer
    return cost(
        model.prior, model.schedule, vocab_size=quantizer.vocab_size, code_dim=quantizer.code_dim,
        num_classes=len(model.class_names),
    ).parameters  # fmt: skip


def num_tokenizer_parameters(model: ModelSettings) -> int:
    """Of the tokenizer."""
    with torch.device("meta"):
        tokenizer = Tokenizer(model.tokenizer, model.schedule)
    return sum(parameter.numel() for parameter in tokenizer.parameters())


def weight_bytes(model: ModelSettings) -> int:
    """Of one copy of prior and tokenizer in float32."""
    return WORD["float32"] * (num_parameters(model) + num_tokenizer_parameters(model))


def sampling_bytes(model: ModelSettings, batch: int, *, dtypes: Sequence[str]) -> int:
    """About what one call of sampling takes beside the weights: keys and values of both branches, and the
    larger of drawing and the decoder.
    """
    assert model.prior is not None
    largest = max(part.dim_out * part.num_cells for part in decoder_parts(model.tokenizer, model.schedule))
    logits = max(model.schedule.num_cells) * model.tokenizer.quantizer.vocab_size
    precision: Literal["float32", "bfloat16"] = "float32" if "float32" in dtypes else "bfloat16"
    cache = _BRANCHES * cache_bytes(model.prior, model.schedule, precision=precision)
    return batch * (max(_DRAWING * logits, _MAPS * WORD["float32"] * largest) + round(_GROWING * cache))


def refuse_large(needed: int, sized: Sized, batch: int, device: torch.device) -> None:
    """Raise ValueError when something does not fit into what is free."""
    free = free_bytes(device)
    if needed > free:
        raise ValueError(
            f"{sized.name} at {sized.px} px, batch {batch}, needs about {needed / 1e9:.3g} GB with its plain "
            f"counterpart, and {free / 1e9:.3g} GB are free on {device}: give a smaller --batch or size, or "
            "one --dtype"
        )
