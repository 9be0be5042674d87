"""A model is a folder: ``config.json``, ``tokenizer.safetensors``, ``prior.safetensors``, ``README.md``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from nextscale import checkpoint
from nextscale.generate.card import CardSettings, card_text
from nextscale.generate.precision import stored_dtype
from nextscale.generate.settings import ModelSettings
from nextscale.models.hub import HUB_FILES, MODEL_FILES
from nextscale.prior.diffusion import DiffusionPrior
from nextscale.prior.next_scale import NextScalePrior
from nextscale.prior.next_token import NextTokenPrior
from nextscale.prior.settings import DiffusionSettings, NextTokenSettings
from nextscale.tokenizer.model import Tokenizer

#: A prior of any family.
Prior: TypeAlias = NextScalePrior | NextTokenPrior | DiffusionPrior
Module = TypeVar("Module", bound=torch.nn.Module)


def save_model(
    folder: Path, settings: ModelSettings, *, tokenizer: Tokenizer, prior: Prior | None = None,
    dtype: torch.dtype = torch.float32, about: CardSettings | None = None,
) -> None:  # fmt: skip
    """Write a model folder, whole or not at all; its card says also what is said ``about`` the model.

    Raises:
        ValueError: the folder exists and holds something that is no model.
    """
    present = {item.name for item in folder.iterdir()} if folder.is_dir() else set()
    if folder.is_file() or (present and not {"config.json"} <= present <= set(HUB_FILES)):
        raise ValueError(f"{folder} exists and holds other files: give another folder")
    quantizer = settings.tokenizer.quantizer.model_copy(
        update={"phi_of_scale": tokenizer.quantizer.phi_of_scale}
    )
    resolved = settings.model_copy(
        update={"tokenizer": settings.tokenizer.model_copy(update={"quantizer": quantizer})}
    )
    with checkpoint.new_folder(folder) as place:
        checkpoint.write_json(place / "config.json", resolved.model_dump(mode="json"))
        _write(place / "tokenizer.safetensors", tokenizer, dtype)
        if prior is not None:
            _write(place / "prior.safetensors", prior, dtype)
        (place / "README.md").write_text(card_text(resolved, about))


def _write(path: Path, module: torch.nn.Module, dtype: torch.dtype) -> None:
    tensors = {name: value.to(stored_dtype(name, dtype)) for name, value in module.state_dict().items()}
    checkpoint.write_tensors(path, tensors)


def read_settings(folder: Path) -> ModelSettings:
    """The settings of a model folder. Raises ValueError when there are none or they are not understood."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is no model folder: it holds no config.json")
    try:
        return ModelSettings.model_validate(json.loads(path.read_text()))
    except (ValidationError, ValueError) as error:
        raise ValueError(f"{path} is not a valid model config: {' '.join(str(error).split())}") from error


def load_tokenizer(folder: Path, settings: ModelSettings, *, dtype: torch.dtype = torch.float32) -> Tokenizer:
    """The tokenizer of a model folder, its quantiser in float32, not in training mode."""
    with torch.device("meta"):
        tokenizer = Tokenizer(settings.tokenizer, settings.schedule)
    return _fill(tokenizer, folder / "tokenizer.safetensors", dtype)


def load_prior(folder: Path, settings: ModelSettings, *, dtype: torch.dtype = torch.float32) -> Prior:
    """The prior of a model folder, not in training mode. Raises ValueError when it has none."""
    if settings.prior is None:
        raise ValueError(f"{folder} holds a tokenizer but no prior: train one with nextscale train prior")
    with torch.device("meta"):
        prior = build_prior(settings)
    return _fill(prior, folder / "prior.safetensors", dtype)


def build_prior(settings: ModelSettings) -> Prior:
    """A prior with fresh weights that fits the tokenizer and the classes of a model.

    Raises:
        ValueError: there is none, or the tokenizer has other scales than it reads.
    """
    if settings.prior is None:
        raise ValueError("these model settings describe no prior")
    given, schedule, num_classes = settings.prior, settings.schedule, len(settings.class_names)
    vocab_size, code_dim = settings.tokenizer.quantizer.vocab_size, settings.tokenizer.quantizer.code_dim
    if isinstance(given, NextTokenSettings):
        return NextTokenPrior(given, schedule, vocab_size=vocab_size, num_classes=num_classes)
    if isinstance(given, DiffusionSettings):
        return DiffusionPrior(given, schedule, code_dim=code_dim, num_classes=num_classes)
    return NextScalePrior(given, schedule, vocab_size=vocab_size, code_dim=code_dim, num_classes=num_classes)


def _fill(module: Module, path: Path, dtype: torch.dtype) -> Module:
    def cast(name: str, value: Tensor) -> Tensor:
        return value.to(stored_dtype(name, dtype), copy=True)  # else it would keep the file mapped

    tensors = checkpoint.read_tensors(path, cast=cast)
    checkpoint.load_into(module, tensors, source=str(path))
    return module.eval().requires_grad_(False)


def model_digest(folder: Path) -> str:
    """What a model's images depend on, in hexadecimal: SHA-256 over those of its config and its weights."""
    files = (folder / name for name in sorted(MODEL_FILES) if name != "README.md")
    text = "".join(f"{file.name} {checkpoint.digest(file)}\n" for file in files if file.is_file())
    return hashlib.sha256(text.encode()).hexdigest()
