"""A model is a folder: ``config.json``, ``tokenizer.safetensors``, ``prior.safetensors``, ``README.md``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import ValidationError

from nextscale import checkpoint
from nextscale.generate.settings import ModelSettings
from nextscale.prior.next_scale import NextScalePrior
from nextscale.tokenizer.model import Tokenizer

Module = TypeVar("Module", bound=torch.nn.Module)

_FILES = {"config.json", "tokenizer.safetensors", "prior.safetensors", "README.md"}


def save_model(
    folder: Path, settings: ModelSettings, *, tokenizer: Tokenizer, prior: NextScalePrior | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    """Write a model folder, whole or not at all.

    Raises:
        ValueError: the folder exists and holds something that is no model.
    """
    present = {item.name for item in folder.iterdir()} if folder.is_dir() else set()
    if folder.is_file() or (present and not {"config.json"} <= present <= _FILES):
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
        (place / "README.md").write_text(_card(resolved))


def _write(path: Path, module: torch.nn.Module, dtype: torch.dtype) -> None:
    checkpoint.write_tensors(path, {name: value.to(dtype) for name, value in module.state_dict().items()})


def read_settings(folder: Path) -> ModelSettings:
    """The settings of a model folder. Raises ValueError when there are none or they are not understood."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is no model folder: it holds no config.json")
    try:
        return ModelSettings.model_validate(json.loads(path.read_text()))
    except (ValidationError, ValueError) as error:
        raise ValueError(f"{path} is not a valid model config: {' '.join(str(error).split())}") from error


def load_tokenizer(folder: Path, settings: ModelSettings) -> Tokenizer:
    """The tokenizer of a model folder, float32, not in training mode."""
    with torch.device("meta"):
        tokenizer = Tokenizer(settings.tokenizer, settings.schedule)
    return _fill(tokenizer, folder / "tokenizer.safetensors")


def load_prior(folder: Path, settings: ModelSettings) -> NextScalePrior:
    """The prior of a model folder, float32, not in training mode. Raises ValueError when it has none."""
    if settings.prior is None:
        raise ValueError(f"{folder} holds a tokenizer but no prior: train one with nextscale train prior")
    with torch.device("meta"):
        prior = build_prior(settings)
    return _fill(prior, folder / "prior.safetensors")


def build_prior(settings: ModelSettings) -> NextScalePrior:
    """A prior with fresh weights that fits the tokenizer and the classes of a model."""
    if settings.prior is None:
        raise ValueError("these model settings describe no prior")
    quantizer = settings.tokenizer.quantizer
    return NextScalePrior(
        settings.prior, settings.schedule, vocab_size=quantizer.vocab_size, code_dim=quantizer.code_dim,
        num_classes=len(settings.class_names),
    )  # fmt: skip


def _fill(module: Module, path: Path) -> Module:
    tensors = {name: value.float() for name, value in checkpoint.read_tensors(path).items()}
    checkpoint.load_into(module, tensors, source=str(path))
    return module.eval().requires_grad_(False)


def _card(settings: ModelSettings) -> str:
    height, width = settings.schedule.latent_size
    reduction = settings.tokenizer.autoencoder.reduction
    quantizer = settings.tokenizer.quantizer
    lines = [
        "# A nextscale model",
        "",
        f"- images: {height * reduction} x {width * reduction} pixels",
        f"- scales: {', '.join(f'{h}x{w}' for h, w in settings.schedule.sizes)}",
        f"- codes: {quantizer.vocab_size} of width {quantizer.code_dim}",
        f"- classes: {len(settings.class_names)}",
    ]
    if settings.prior is not None:
        lines.append(f"- prior: depth {settings.prior.depth}, width {settings.prior.width}")
    return "\n".join(lines) + "\n"
