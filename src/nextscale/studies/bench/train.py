"""`nextscale bench train`: training steps of a prior from kept tokens.

Letters: B batch, L tokens of all scales.
Special here: the default path is the task and the step that training itself runs, reading from an array of
random tokens; averaging of the weights and everything between steps is left out on both sides.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

import numpy
import torch

from nextscale.data.loader import Batch, token_batches
from nextscale.distributed import Distributed
from nextscale.generate.generator import Generator
from nextscale.generate.settings import ModelSettings
from nextscale.prior.next_scale import NextScalePrior
from nextscale.prior.transformer import drop_path_factors
from nextscale.studies.bench.clock import Timing, time_in_turn
from nextscale.studies.bench.models import num_parameters, random_tokenizer, refuse_large
from nextscale.studies.bench.peak import peak_of
from nextscale.studies.bench.rows import Row, Setting, limits_line, limits_of
from nextscale.studies.bench.settings import BenchSettings, Sized
from nextscale.studies.bench.work import Limits, training_pass
from nextscale.studies.reference.training import plain_step
from nextscale.tokenizer.model import Tokenizer
from nextscale.train.memory import prior_activations
from nextscale.train.optimizer import build_optimizer
from nextscale.train.prior_task import PriorTask
from nextscale.train.settings import PriorRun
from nextscale.train.step import take_step

#: Bytes of a parameter in training: itself, its gradient, AdamW's two averages; all float32.
_TRAINED = 16
_SEED = 0


class RandomTokens:
    """A source of images that has their tokens alone."""

    def __init__(self, model: ModelSettings, num_samples: int) -> None:
        numbers = numpy.random.default_rng(_SEED)
        self.class_names = model.class_names
        self.labels = numbers.integers(len(self.class_names), size=num_samples)
        shape = (1, num_samples, model.schedule.num_tokens)
        vocab_size = model.tokenizer.quantizer.vocab_size
        self.tokens_VNL = numbers.integers(vocab_size, size=shape, dtype=numpy.uint16)

    def read(self, index: int) -> bytes:
        raise NotImplementedError(f"image {index} is tokens alone")

    def name(self, index: int) -> str:
        return f"tokens {index}"

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """One after the other, without end."""
        for step in count():
            yield from token_batches(
                self.tokens_VNL, self.labels, batch_size=batch_size, seed=_SEED, steps=range(step, step + 1)
            )


class DefaultStep:
    """Training as `nextscale train prior` does it."""

    def __init__(
        self, sized: Sized, home: Path, *, batch: int, dtype: str, device: torch.device, compile: bool = False
    ) -> None:  # fmt: skip
        loop = sized.run.loop.model_copy(update={"batch_size": batch, "precision": dtype, "accumulate": 1})
        changes = {"tokenizer_from": str(home), "cache_views": 0, "loop": loop, "compile": compile}
        self.run: PriorRun = sized.run.model_copy(update=changes)
        self.tokens = RandomTokens(sized.model, max(64, batch))
        self.task = PriorTask(
            self.run, source=self.tokens, validation=self.tokens, device=device, folder=home
        )  # fmt: skip
        self.task.module.train()
        self.ranks = Distributed(0, 1, device)
        self.optimizer = build_optimizer(
            self.task.module, self.run.optimizer, no_decay=self.task.no_decay
        )  # fmt: skip
        self._batches = self.tokens.batches(batch)

    def __call__(self) -> None:
        """One step."""
        take_step(
            self.task, next(self._batches), self.optimizer, loop=self.run.loop,
            clip_norm=self.run.optimizer.clip_norm, ranks=self.ranks,
        )  # fmt: skip


class PlainStep:
    """The same as the released trainer does it, on weights of its own."""

    def __init__(self, like: DefaultStep, tokenizer: Tokenizer, *, batch: int) -> None:
        module = like.task.module
        assert isinstance(module, NextScalePrior)
        self.prior, self.tokenizer, self.like = copy.deepcopy(module), tokenizer, like
        settings = like.run.optimizer
        self.optimizer = torch.optim.AdamW(
            self.prior.parameters(), lr=settings.base_lr, betas=settings.betas, fused=True
        )
        self._batches = like.tokens.batches(batch)

    def __call__(self, dtype: str) -> None:
        """One step."""
        batch, device = next(self._batches), self.like.task.device
        keep_D2B = drop_path_factors(self.prior.settings, batch.uniforms_BR[:, 1:].to(device))
        plain_step(
            self.prior, self.tokenizer, self.optimizer, labels_B=self.like.task.labels(batch),
            tokens_BL=batch.items.to(device), dtype=getattr(torch, dtype),
            clip_norm=self.like.run.optimizer.clip_norm, keep_D2B=keep_D2B,
        )  # fmt: skip


def bench_training(settings: BenchSettings, device: torch.device) -> list[Row]:
    """A row for every size, batch and dtype. Raises ValueError for what does not fit into the memory."""
    for sized in settings.sized:
        for batch in settings.batches:
            refuse_large(_bytes(sized, batch, len(settings.dtypes)), sized, batch, device)
    rows: list[Row] = []
    for sized in settings.sized:
        with tempfile.TemporaryDirectory() as folder:
            home, tokenizer = Path(folder) / "model", random_tokenizer(sized.model, device)
            bare = sized.model.model_copy(update={"prior": None})
            Generator(bare, tokenizer).save(home, dtype=torch.bfloat16)
            for batch in settings.batches:
                rows += _of_batch(settings, sized, home, tokenizer, batch=batch)
    return rows


def _bytes(sized: Sized, batch: int, num_dtypes: int) -> int:
    """All copies of what is trained, and what autograd keeps of one step in float32."""
    model = sized.model
    assert model.prior is not None
    kept = prior_activations(
        model.prior, model.schedule, model.tokenizer.quantizer, precision="float32", recompute=False
    )
    return (num_dtypes + 1) * _TRAINED * num_parameters(model) + batch * kept


def _of_batch(
    settings: BenchSettings, sized: Sized, home: Path, tokenizer: Tokenizer, *, batch: int
) -> list[Row]:
    device = next(tokenizer.parameters()).device
    steps = {
        dtype: DefaultStep(
            sized, home, batch=batch, dtype=dtype, device=device, compile=settings.compile
        )
        for dtype in settings.dtypes
    }  # fmt: skip
    plain = PlainStep(steps[settings.dtypes[0]], tokenizer, batch=batch)
    dtypes = list(dict.fromkeys([*settings.dtypes, "float32"]))
    timings, limits = time_in_turn(
        {f"default {dtype}": step for dtype, step in steps.items()}
        | {f"plain {dtype}": partial(plain, dtype) for dtype in dtypes},
        rounds=settings.rounds, device=device, dtypes=dtypes,
    )  # fmt: skip
    rows = []
    for dtype in settings.dtypes:
        if device.type == "cpu":
            peak = peak_of("train", sized=sized.model_dump_json(), folder=str(home), batch=batch, dtype=dtype)
        else:
            peak = (timings[f"default {dtype}"].peak_bytes or 0) + _TRAINED * num_parameters(sized.model)
        rows.append(_row(Setting(sized, batch, dtype), timings, limits, peak=peak))
    return rows


def _row(setting: Setting, timings: dict[str, Timing], limits: Limits, *, peak: int) -> Row:
    sized, batch, dtype = setting
    model = sized.model
    assert model.prior is not None
    work = training_pass(
        model.prior, model.schedule, model.tokenizer, batch=batch, dtype=dtype,
        num_parameters=num_parameters(model),
    )  # fmt: skip
    own, plain = timings[f"default {dtype}"], timings[f"plain {dtype}"]
    plain_float32 = timings["plain float32"]
    of_rate = work.flops / own.seconds / limits.flops[dtype]
    over_float32 = own.speedup_over(plain_float32)
    return setting.row(
        own.seconds, peak_bytes=peak, fraction_of_limit=limits.seconds([work]) / own.seconds,
        speedup=own.speedup_over(plain), speedup_over_float32=over_float32, reference_seconds=plain.seconds,
        reference_float32_seconds=plain_float32.seconds, fraction_of_matrix_rate=of_rate,
        limits=limits_of(limits), flops=work.flops, num_bytes=work.num_bytes,
        told=[
            f"{100 * of_rate:.0f} % of the rate of {dtype} products; plain path {plain.seconds:.4g} s, in "
            f"float32 {plain_float32.seconds:.4g} s ({over_float32:.2f} times the default)",
            limits_line(limits),
        ],
    )  # fmt: skip
