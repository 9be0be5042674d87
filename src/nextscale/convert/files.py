"""Published ``.pth`` files, read without running anything that is in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nextscale.convert.layout import from_released
from nextscale.generate.generator import Generator
from nextscale.integrity.pickles import why_refused


def convert_files(
    tokenizer: Path, *, prior: Path | None, out: Path, patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None, unit_codes: bool = False,
) -> Generator:  # fmt: skip
    """Convert published files to a model folder, whole or not at all.

    Args:
        tokenizer: the tokenizer's file, or a trainer's file that holds both models.
        prior: the transformer's file or a trainer's file, which may be the same; None for a tokenizer alone.
        out: the folder to write; it may hold an older model, but nothing else.
        patch_nums: as for `from_released`, likewise below.
        num_heads: heads of the transformer.
        unit_codes: the tokenizer was trained with ``using_znorm``.

    Returns:
        The model that was written.

    Raises:
        ValueError: a file cannot be read or does not fit, or the folder holds other files.
    """
    tokenizer_content = read_released_file(tokenizer)
    prior_content = None
    if prior is not None:
        prior_content = tokenizer_content if prior == tokenizer else read_released_file(prior)
    try:
        generator = from_released(
            tokenizer_content, prior_content,
            patch_nums=patch_nums, num_heads=num_heads, unit_codes=unit_codes,
        )  # fmt: skip
    except ValueError as error:
        given = str(tokenizer) if prior is None else f"{tokenizer} with {prior}"
        raise ValueError(f"{given} cannot be converted: {error}") from error
    generator.save(out)
    return generator


def read_released_file(path: Path) -> dict[str, Any]:
    """What a ``.pth`` file holds: tensors by their published names, or the dict that the trainer saves.

    Raises:
        ValueError: no such file, no checkpoint, or one that would run code when loaded, which it names.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give a published .pth checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can make the reader fail in any way
        if refusal := why_refused(path):
            raise ValueError(refusal) from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path} is not a readable PyTorch checkpoint ({reason}): give another") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}: expected a state dict, tensors by name")
    return dict(content)
