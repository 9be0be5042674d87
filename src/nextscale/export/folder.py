"""Write a model as programs: a folder of ``export.json``, one file each, and the weights in ``model/``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from nextscale import checkpoint
from nextscale.export.pieces import Piece, prior_pieces, tokenizer_pieces
from nextscale.export.programs import need, write_program
from nextscale.export.settings import ENDINGS, ExportSettings, ProgramSettings, Target
from nextscale.generate.folder import load_prior, load_tokenizer, read_settings, save_model
from nextscale.models import find_model
from nextscale.prior.next_scale import NextScalePrior

#: What an exported folder is known by.
SETTINGS = "export.json"
#: The model folder inside it.
MODEL = "model"


def export_model(
    model: str | Path, folder: str | Path, *, target: Target, batch: int = 1,
    dtype: Literal["float32", "bfloat16"] = "float32", say: Callable[[str], None] = lambda line: None,
) -> ExportSettings:  # fmt: skip
    """Write encoder, decoder, what labels decide, and one step per scale as programs, whole or not at all.

    Args:
        model: a bundled model, or a model folder.
        folder: a new one.
        target: ``aoti`` (native code for this machine's kind of CPU), ``onnx``, or ``torch-export``.
        batch: images that the programs work on at a time; their shapes are static.
        dtype: of the weights and of what the programs compute in.
        say: takes one line per program.

    Raises:
        ValueError: no such model, one of another family, packages that are missing, or a batch below 1.
    """
    need(target, writing=True)
    if batch < 1:
        raise ValueError(f"batch {batch} is out of range: expected at least 1")
    if target == "onnx" and dtype != "float32":
        raise ValueError(f"onnx with dtype {dtype} is not supported: its inputs come from numpy; use float32")
    home = find_model(model)
    settings, stored = read_settings(home), getattr(torch, dtype)
    kind = settings.prior.kind if settings.prior is not None else "next_scale"
    if kind != "next_scale":
        raise ValueError(f"{model} has a prior of kind {kind}: only next_scale ones are exported")
    tokenizer = load_tokenizer(home, settings, dtype=stored)
    prior = load_prior(home, settings, dtype=stored) if settings.prior is not None else None
    pieces: dict[str, Piece] = tokenizer_pieces(tokenizer, batch=batch)
    if isinstance(prior, NextScalePrior):
        pieces |= prior_pieces(prior, rows=2 * batch)  # both branches of guidance
    with checkpoint.new_folder(Path(folder)) as place:
        save_model(place / MODEL, settings, tokenizer=tokenizer, prior=prior, dtype=stored)
        programs = {}
        for name, piece in pieces.items():
            say(f"{name}: {target}, {piece.rows} rows")
            file = name + ENDINGS[target]
            write_program(piece, place / file, target)
            programs[name] = ProgramSettings(
                file=file, digest=checkpoint.digest(place / file), weights_of=piece.weights_of,
                weights=tuple(piece.weights), inputs=tuple(piece.inputs), rows=piece.rows,
            )  # fmt: skip
        exported = ExportSettings(
            target=target, batch=batch, dtype=dtype, torch_version=torch.__version__, programs=programs
        )
        checkpoint.write_json(place / SETTINGS, exported.model_dump(mode="json"))
    return exported
