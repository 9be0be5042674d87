"""Programs in three formats: how each is written, and how each is run.

Special here: the three share their inputs and outputs, so whoever runs them need not know the format.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextscale.export.pieces import Piece
from nextscale.export.settings import ProgramSettings, Target

#: Inputs without the weights -> outputs.
Run = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]


def need(target: Target, *, writing: bool) -> None:
    """Raise ValueError when a format's packages are not installed."""
    wanted = ("onnx", "onnxscript", "onnxruntime") if writing else ("onnxruntime",)
    missing = [name for name in wanted if target == "onnx" and importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"onnx needs {', '.join(missing)}: pip install 'nextscale[export]'")


@torch.no_grad()
def write_program(piece: Piece, path: Path, target: Target) -> None:
    """Trace a piece with static shapes and write it."""
    with warnings.catch_warnings():  # torch's tracers warn of themselves
        warnings.simplefilter("ignore")
        _write(piece, path, target)


def _write(piece: Piece, path: Path, target: Target) -> None:
    weights, inputs = tuple(piece.weights.values()), tuple(piece.inputs.values())
    program = torch.export.export(piece.module, (weights, inputs), strict=False)
    if target == "torch-export":
        program.example_inputs = None  # else the weights would be in every file
        torch.export.save(program, path)
    elif target == "aoti":
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    else:
        names = [*piece.weights, *piece.inputs]
        torch.onnx.export(
            program, (weights, inputs), str(path), input_names=names, dynamo=True, external_data=False,
            optimize=True, verbose=False,
        )  # fmt: skip


def read_program(path: Path, target: Target, settings: ProgramSettings, tensors: Mapping[str, Tensor]) -> Run:
    """A program that is ready to run, with its weights bound to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _read(path, target, settings, tuple(tensors[name] for name in settings.weights))


def _read(path: Path, target: Target, settings: ProgramSettings, weights: tuple[Tensor, ...]) -> Run:
    if target == "onnx":
        return _read_onnx(path, settings, weights)
    if target == "aoti":
        called: Any = torch._inductor.aoti_load_package(str(path))
    else:
        called = torch.export.load(path).module()

    def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        outputs = called(weights, tuple(inputs))
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    return run


def _read_onnx(path: Path, settings: ProgramSettings, weights: Sequence[Tensor]) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    known = {item.name for item in session.get_inputs()}
    bound = {
        name: value.numpy() for name, value in zip(settings.weights, weights, strict=True) if name in known
    }

    def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        given = {
            name: value.numpy() for name, value in zip(settings.inputs, inputs, strict=True) if name in known
        }
        return tuple(torch.from_numpy(output) for output in session.run(None, {**bound, **given}))

    return run
