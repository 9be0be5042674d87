"""An exported model that generates: programs do the work of transformer, encoder and decoder; drawing and
quantiser are those of every `Generator`, so in float32 the same tokens come out.

Letters: B images, R rows of a program, T tokens of one scale, K depth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Unpack, cast

import torch
from pydantic import ValidationError
from torch import Tensor

from nextscale import checkpoint
from nextscale.export.folder import MODEL, SETTINGS
from nextscale.export.programs import Run, need, read_program
from nextscale.export.settings import ExportSettings
from nextscale.generate.folder import load_prior, load_tokenizer, read_settings
from nextscale.generate.next_scale import scale_by_scale
from nextscale.generate.request import Label, Sampling, build_request
from nextscale.generate.result import Result
from nextscale.generate.settings import ModelSettings
from nextscale.prior.next_scale import NextScalePrior
from nextscale.tokenizer.model import Tokenizer


def load(folder: str | Path) -> ExportedGenerator:
    """Load an exported folder.

    Programs are code: those of ``aoti`` run as native code with the rights of this process, the others are
    read by torch's and onnxruntime's own readers. The digests find damage, not an attacker: load folders that
    you trust.

    Raises:
        ValueError: the folder is none, is damaged, or needs packages that are missing.
    """
    home = Path(folder)
    path = home / SETTINGS
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give a folder that nextscale export wrote")
    try:
        exported = ExportSettings.model_validate(json.loads(path.read_text()))
    except (ValidationError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not understood: {' '.join(str(error).split())}") from error
    need(exported.target, writing=False)
    settings, stored = read_settings(home / MODEL), getattr(torch, exported.dtype)
    tokenizer = load_tokenizer(home / MODEL, settings, dtype=stored)
    tensors = {"tokenizer": tokenizer.state_dict()}
    prior = load_prior(home / MODEL, settings, dtype=stored) if settings.prior is not None else None
    if prior is not None:
        tensors["prior"] = prior.state_dict()
    runs = {}
    for name, program in exported.programs.items():
        file = home / program.file
        if not file.is_file() or checkpoint.digest(file) != program.digest:
            raise ValueError(
                f"{file} is missing or not the one that {SETTINGS} names: export the model again"
            )
        runs[name] = read_program(file, exported.target, program, tensors[program.weights_of])
    return ExportedGenerator(settings, exported, tokenizer, cast(NextScalePrior | None, prior), runs)


class ExportedGenerator:
    """Makes images as a `Generator` does, with programs.

    Args:
        settings: of the model.
        exported: of the programs.
        tokenizer: its quantiser is used, its other weights are those of the programs.
        prior: of whose weights the programs are, if the model has one.
        runs: the programs by name.
    """

    def __init__(
        self, settings: ModelSettings, exported: ExportSettings, tokenizer: Tokenizer,
        prior: NextScalePrior | None, runs: Mapping[str, Run],
    ) -> None:  # fmt: skip
        self.settings, self.exported, self.tokenizer, self._runs = settings, exported, tokenizer, runs
        self._prior = None if prior is None else _Programs(runs, prior, rows=2 * exported.batch)

    @torch.no_grad()
    def __call__(
        self, labels: Sequence[Label], *, seeds: Sequence[int], **settings: Unpack[Sampling]
    ) -> Result:
        """As `Generator.__call__`, in parts of at most the exported batch; settings are one value for all.

        Raises:
            ValueError: a value out of its range, or a model without a prior.
        """
        if self._prior is None:
            raise ValueError("this model holds a tokenizer but no prior: export one with a prior")
        build_request(
            labels, seeds, self.settings, overrides=settings, smooth=False, device=torch.device("cpu")
        )
        images, tokens = [], []
        for start in range(0, len(labels), self.exported.batch):
            part = slice(start, start + self.exported.batch)
            request = build_request(
                labels[part], seeds[part], self.settings, overrides=settings, smooth=False,
                device=torch.device("cpu"),
            )  # fmt: skip
            steps = list(scale_by_scale(self._prior, self.tokenizer, request))
            tokens.append(torch.cat([drawn for drawn, _ in steps], dim=1))
            images.append(self._decoded(steps[-1][1]))
        return Result(torch.cat(images), torch.cat(tokens))

    @torch.no_grad()
    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Images float (B, 3, H, W) in [-1, 1] -> tokens int64 (B, L)."""
        parts = images_BCHW.to(self.tokenizer.pre_quant.weight.dtype).split(self.exported.batch)
        features = [_on_rows(self._runs["encoder"], [part], self.exported.batch)[0] for part in parts]
        return self.tokenizer.quantizer.encode(torch.cat(features).float())

    @torch.no_grad()
    def decode(self, tokens_BL: Tensor) -> Tensor:
        """Tokens int64 (B, L) -> images float32 (B, 3, H, W) in [-1, 1]."""
        *_, features = self.tokenizer.quantizer.maps(tokens_BL)
        return torch.cat([self._decoded(part) for part in features.split(self.exported.batch)])

    def _decoded(self, features_BChw: Tensor) -> Tensor:
        given = features_BChw.to(self.tokenizer.post_quant.weight.dtype)
        return _on_rows(self._runs["decoder"], [given], self.exported.batch)[0].clone()


class _Condition(SimpleNamespace):
    """What the labels decide, (R, ...) each."""

    tensors: tuple[Tensor, Tensor, Tensor]

    def first(self, batch: int) -> _Condition:
        start, blocks, head = self.tensors
        return _Condition(tensors=(start[:batch], blocks[:, :batch], head[:batch]))


class _Cache(SimpleNamespace):
    """Keys and values so far (K, 2, R, N, P, E); None before the first scale."""

    past: Tensor | None = None

    def keep_first(self, batch: int) -> None:
        assert self.past is not None
        self.past = self.past[:, :, :batch]


class _Programs:
    """What `scale_by_scale` asks of a prior, by programs."""

    def __init__(self, runs: Mapping[str, Run], prior: NextScalePrior, *, rows: int) -> None:
        self._runs, self._rows, self.unconditional = runs, rows, prior.unconditional

    def condition(self, labels_B: Tensor) -> _Condition:
        run = self._runs["condition"]
        start, blocks, head = run([_padded(labels_B, self._rows)])
        return _Condition(tensors=(start, blocks, head)).first(len(labels_B))

    def new_cache(self, batch: int) -> _Cache:
        return _Cache()

    def step(self, scale: int, condition: _Condition, inputs_BTC: Tensor | None, cache: _Cache) -> Tensor:
        start, blocks, head = condition.tensors
        rows, given = len(start), [_padded(start, self._rows), _padded(blocks, self._rows, dim=1)]
        given.append(_padded(head, self._rows))
        if inputs_BTC is not None:
            assert cache.past is not None
            given += [_padded(inputs_BTC, self._rows), _padded(cache.past, self._rows, dim=2)]
        logits, new = self._runs[f"step{scale:02d}"](given)
        new = new[:, :, :rows]
        cache.past = new if cache.past is None else torch.cat([cache.past, new], dim=4)
        return logits[:rows].float()


def _on_rows(run: Run, given: Sequence[Tensor], rows: int) -> tuple[Tensor, ...]:
    """Run a program on fewer rows than it has."""
    count = len(given[0])
    return tuple(output[:count] for output in run([_padded(part, rows) for part in given]))


def _padded(tensor: Tensor, rows: int, dim: int = 0) -> Tensor:
    """With the last row repeated, and contiguous: programs have static shapes and strides."""
    missing = rows - tensor.shape[dim]
    if missing:
        last = tensor.narrow(dim, tensor.shape[dim] - 1, 1)
        tensor = torch.cat([tensor, *[last] * missing], dim=dim)
    return tensor.contiguous()
