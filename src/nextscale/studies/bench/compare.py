"""`nextscale bench compare`: next-scale against next-token sampling of equal size and against DiT-XL/2.

Letters: B batch, L tokens, C channels.
Special here: every family is timed plain (see `nextscale.studies.reference`) and at its best (the default
path), so that plain stands against plain and best against best; DiT-XL/2 has one way and stands against both
(beside `tiny` a diffusion transformer of its own size stands in). What would take minutes is timed on its
first steps and scaled up: ``scaled_from`` says so in the row, a star in the card. Next-scale times hold the
decoder, next-token times do too unless they are scaled, DiT's never do, which favours the rivals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch

from nextscale.generate.settings import ModelSettings
from nextscale.prior.next_scale import NextScalePrior
from nextscale.prior.next_token import NextTokenPrior
from nextscale.prior.settings import DiffusionSettings
from nextscale.studies.bench.clock import Timing, time_in_turn, wait
from nextscale.studies.bench.default import make_default
from nextscale.studies.bench.dit import dit_step
from nextscale.studies.bench.generate import measure_peaks
from nextscale.studies.bench.models import (
    num_parameters,
    one_map,
    random_prior,
    random_tokenizer,
    refuse_large,
    request_for,
    sampling_bytes,
    weight_bytes,
)
from nextscale.studies.bench.rows import Row, Setting, limits_line, limits_of
from nextscale.studies.bench.settings import WORD, BenchSettings, Sized
from nextscale.studies.bench.work import Limits, Pass, generation_parts, transformer_passes
from nextscale.studies.reference.generation import generate_plainly, next_tokens_plainly

_DIT_STEPS, _DIT_TIMED = 250, 2
_DIT = DiffusionSettings(depth=28, model_dim=1152, num_heads=16)
#: A way that takes longer than so many seconds in all rounds is timed on its first row of tokens.
_PATIENCE = 60.0


class Timed(NamedTuple):
    """One way to make images."""

    family: str
    way: str  #: plain or best
    run: Callable[[], object]
    work: list[Pass]  #: of the whole
    weights: int  #: bytes
    timed: int = 1  #: steps that are timed
    whole: int = 1  #: steps of the whole

    @property
    def key(self) -> str:
        """What it is called."""
        return f"{self.family}, {self.way}"

    @property
    def factor(self) -> float:
        """The whole time / the time of what is timed."""
        return self.whole / self.timed


def bench_comparison(settings: BenchSettings, device: torch.device) -> list[Row]:
    """Rows for every size, batch and dtype. Raises ValueError for what does not fit into the memory."""
    for sized in settings.sized:
        for batch in settings.batches:
            # next-scale and next-token, each twice, and the diffusion transformer
            needed = 4 * weight_bytes(sized.model) + weight_bytes(_dit_model(sized))
            needed += sampling_bytes(sized.model, batch, dtypes=settings.dtypes)
            refuse_large(needed, sized, batch, device)
    rows: list[Row] = []
    for sized in settings.sized:
        for dtype in settings.dtypes:
            families = _Families(sized, dtype, device)
            for batch in settings.batches:
                rows += _of_batch(families, Setting(sized, batch, dtype), rounds=settings.rounds)
            del families
        if device.type == "cpu":
            own = [row for row in rows if (row["family"], row["way"]) == ("next_scale", "best")]
            measure_peaks(own, sized)
    return rows


class _Families:
    """All families of one size, in one dtype."""

    def __init__(self, sized: Sized, dtype: str, device: torch.device) -> None:
        self.sized, self.dtype, self.device = sized, dtype, device
        assert sized.model.prior is not None
        self.tokenizer, self.prior = random_tokenizer(sized.model, device), random_prior(sized.model, device)
        self.default = make_default(sized.model, self.tokenizer, self.prior, dtype=dtype)
        blocks = sized.model.prior.model_dump(exclude={"kind"})
        self.token_model = one_map(sized.model, {"kind": "next_token", **blocks})
        self.token_tokenizer = random_tokenizer(self.token_model, device)
        self.token_prior = random_prior(self.token_model, device)
        self.token_default = make_default(
            self.token_model, self.token_tokenizer, self.token_prior, dtype=dtype
        )  # fmt: skip
        self.dit_model = _dit_model(sized)
        self.dit, self.dit_name = dit_step(self.dit_model, dtype=dtype, device=device)

    def ways(self, batch: int, rounds: int) -> list[Timed]:
        """All that are timed at one batch size."""
        sized, dtype = self.sized, getattr(torch, self.dtype)
        assert isinstance(self.prior, NextScalePrior)
        plain = partial(
            generate_plainly, self.prior, self.tokenizer, request_for(sized.model, batch, self.device),
            dtype=dtype,
        )  # fmt: skip
        work = self._work(sized, batch)
        ways = [Timed("next_scale", "best", partial(self.default, batch), work, self.default.weight_bytes),
                Timed("next_scale", "plain", plain, work, weight_bytes(sized.model))]  # fmt: skip
        return [*ways, *self._token_ways(batch, rounds), self._dit_way(batch)]

    def _work(self, sized: Sized, batch: int) -> list[Pass]:
        model = sized.model
        assert model.prior is not None
        parts = generation_parts(
            model.prior, model.schedule, model.tokenizer, batch=batch, guided=model.sampling.guidance > 0,
            dtype=self.dtype,
        )  # fmt: skip
        return [item for passes in parts.values() for item in passes]

    def _token_ways(self, batch: int, rounds: int) -> list[Timed]:
        model, prior = self.token_model, self.token_prior
        assert isinstance(prior, NextTokenPrior)
        rows, row = model.schedule.latent_size
        guided = {"guidance": self.sized.model.sampling.guidance}
        request = request_for(model, batch, self.device, guided)  # type: ignore[arg-type]
        plain = partial(
            next_tokens_plainly, prior, self.token_tokenizer, request, dtype=getattr(torch, self.dtype)
        )
        work = self._work(self.sized.model_copy(update={"model": model}), batch)
        weights = {"best": self.token_default.weight_bytes, "plain": weight_bytes(model)}
        ways = []
        candidates: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
            ("best", partial(self.token_default, batch), partial(self.token_default.rows, batch, 1)),
            ("plain", plain, partial(plain, num_tokens=row)),
        ]
        for way, whole, first in candidates:
            first()
            seconds = _seconds(first, self.device)
            if seconds * rows * (rounds + 1) > _PATIENCE:
                ways.append(Timed("next_token", way, first, work, weights[way], row, row * rows))
            else:
                ways.append(Timed("next_token", way, whole, work, weights[way]))
        return ways

    def _dit_way(self, batch: int) -> Timed:
        model = self.dit_model
        assert model.prior is not None
        work = transformer_passes(
            model.prior, model.schedule, model.tokenizer.quantizer, batch=batch, guided=True,
            dtype=self.dtype, num_steps=_DIT_STEPS,
        )  # fmt: skip

        weights = num_parameters(model) * WORD[self.dtype]

        def run() -> None:
            for _ in range(_DIT_TIMED):
                self.dit(batch)

        return Timed(self.dit_name, "best", run, work, weights, _DIT_TIMED, _DIT_STEPS)


def _dit_model(sized: Sized) -> ModelSettings:
    """With the diffusion transformer."""
    prior = sized.model.prior
    assert prior is not None
    rival = _DIT
    if sized.name == "tiny":
        rival = DiffusionSettings(depth=prior.depth, model_dim=prior.width, num_heads=prior.heads)
    return one_map(sized.model, rival.model_dump())


def _seconds(way: Callable[[], object], device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    way()
    wait(device)
    return time.perf_counter() - start


def _of_batch(families: _Families, setting: Setting, *, rounds: int) -> list[Row]:
    ways = families.ways(setting.batch, rounds)
    timings, limits = time_in_turn(
        {way.key: way.run for way in ways}, rounds=rounds, device=families.device,
        dtypes=list(dict.fromkeys([setting.dtype, "float32"])),
    )  # fmt: skip
    return [_row(setting, way, {item.key: item for item in ways}, timings, limits) for way in ways]


def _row(
    setting: Setting, way: Timed, ways: Mapping[str, Timed], timings: Mapping[str, Timing], limits: Limits
) -> Row:
    own, rivals = timings[way.key], {}
    for against in ("plain", "best"):
        other = ways[f"next_scale, {against}"]
        rivals[against] = timings[other.key].speedup_over(own) * way.factor
    plain = ways.get(f"{way.family}, plain")
    speedup = None
    if plain is not None:
        speedup = own.speedup_over(timings[plain.key]) * plain.factor / way.factor
    told, fair = [], rivals.get(way.way, rivals["best"])
    if way.family != "next_scale":
        told = [f"{fair:.1f} times as long as next_scale, {way.way}"]
        if plain is None:
            told = [f"{told[0]}; {rivals['plain']:.1f} times as long as next_scale, plain"]
    elif way.way == "best":
        told = [limits_line(limits)]
    seconds = own.seconds * way.factor
    return setting.row(
        seconds, what=way.key, family=way.family, way=way.way,
        peak_bytes=None if own.peak_bytes is None else own.peak_bytes + way.weights,
        fraction_of_limit=limits.seconds(way.work) / seconds, speedup=speedup,
        times_next_scale_plain=rivals["plain"], times_next_scale_best=rivals["best"],
        scaled_from=None if way.factor == 1 else {"steps": way.timed, "of": way.whole},
        limits=limits_of(limits), told=told,
    )  # fmt: skip
