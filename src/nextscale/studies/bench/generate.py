"""`nextscale bench generate`: how long images take, where the time goes, and how near the limit it is.

Letters: B batch, T tokens of one scale, V codes.
Special here: the plain path runs under autocast in bfloat16, as the released code does, decoder included; its
weights are float32 in either case. Of the default path, quantiser, decoder and drawing are timed alone on
tensors of the right shapes; the transformer's time is what is left of the whole.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from nextscale.generate.generator import Generator
from nextscale.generate.request import Request
from nextscale.generate.sampling import draw_tokens
from nextscale.prior.next_scale import NextScalePrior
from nextscale.studies.bench.clock import Timing, time_in_turn
from nextscale.studies.bench.default import Default, make_default, use_cuda_graphs
from nextscale.studies.bench.models import (
    random_prior,
    random_tokenizer,
    refuse_large,
    request_for,
    sampling_bytes,
    weight_bytes,
)
from nextscale.studies.bench.peak import peak_of
from nextscale.studies.bench.rows import Row, Setting, limits_line, limits_of
from nextscale.studies.bench.settings import WORD, BenchSettings, Sized
from nextscale.studies.bench.work import Limits, generation_parts
from nextscale.studies.reference.generation import generate_plainly
from nextscale.tokenizer.model import Tokenizer

Way = Callable[[], object]

#: How often a peak is measured.
_PEAKS = 3


def bench_generation(settings: BenchSettings, device: torch.device) -> list[Row]:
    """A row for every size, batch and dtype.

    Raises:
        ValueError: what does not fit into the memory; CUDA graphs without a GPU, or with other tokens.
    """
    for sized in settings.sized:
        for batch in settings.batches:
            copies = (1 + len(settings.dtypes)) * weight_bytes(sized.model)
            needed = copies + sampling_bytes(sized.model, batch, dtypes=["float32"])
            refuse_large(needed, sized, batch, device)
    rows: list[Row] = []
    for sized in settings.sized:
        tokenizer, prior = random_tokenizer(sized.model, device), random_prior(sized.model, device)
        assert isinstance(prior, NextScalePrior)
        defaults: dict[str, Default] = {
            dtype: make_default(sized.model, tokenizer, prior, dtype=dtype) for dtype in settings.dtypes
        }
        if settings.cuda_graphs:
            for default in defaults.values():
                use_cuda_graphs(default, batch=settings.batches[0])
        for batch in settings.batches:
            found = time_generation(sized, tokenizer, prior, defaults, batch=batch, rounds=settings.rounds)
            rows += [
                _row(Setting(sized, batch, dtype), *found, weights=default.weight_bytes)
                for dtype, default in defaults.items()
            ]
        del tokenizer, prior, defaults
    if device.type == "cpu":
        for sized in settings.sized:
            measure_peaks(rows, sized)
    if settings.cuda_graphs:  # what graphs hold was there before the timing began
        rows = [row | {"peak_bytes": None} for row in rows]
    return rows


def time_generation(
    sized: Sized, tokenizer: Tokenizer, prior: NextScalePrior, defaults: Mapping[str, Default], *,
    batch: int, rounds: int,
) -> tuple[dict[str, Timing], Limits]:  # fmt: skip
    """Time the default path in every dtype, its parts, and the plain path."""
    device = prior.position.device
    request = request_for(sized.model, batch, device)
    ways: dict[str, Way] = {}
    for dtype, default in defaults.items():
        ways |= {f"{name} {dtype}": way for name, way in _default_ways(default, request).items()}
    for dtype in dict.fromkeys([*defaults, "float32"]):
        ways[f"plain {dtype}"] = partial(
            generate_plainly, prior, tokenizer, request, dtype=getattr(torch, dtype)
        )
    dtypes = list(dict.fromkeys([*defaults, "float32", "int8"]))  # int8: what it could bring
    return time_in_turn(ways, rounds=rounds, device=device, dtypes=dtypes)


def _default_ways(default: Default, request: Request) -> dict[str, Way]:
    """The whole, and its parts on tensors of their shapes."""
    tokenizer, batch = default.generator.tokenizer, len(request.seeds)
    schedule, quantizer = tokenizer.schedule, tokenizer.settings.quantizer
    device = default.device
    tokens_BL = torch.randint(quantizer.vocab_size, (batch, schedule.num_tokens), device=device)
    map_BChw = torch.randn(batch, quantizer.code_dim, *schedule.latent_size, device=device)
    logits_BTV = torch.randn(batch, max(schedule.num_cells), quantizer.vocab_size, device=device)
    uniforms_BT = torch.rand(batch, max(schedule.num_cells), device=device, dtype=torch.float64)

    def draw() -> None:
        for cells in schedule.num_cells:
            draw_tokens(logits_BTV[:, :cells], uniforms_BT[:, :cells], request.draw)

    return {
        "default": partial(default, batch), "quantizer": partial(default.quantise, tokens_BL),
        "decoder": partial(default.decode, map_BChw), "drawing": draw,
    }  # fmt: skip


def _row(setting: Setting, timings: Mapping[str, Timing], limits: Limits, *, weights: int) -> Row:
    sized, batch, dtype = setting
    model = sized.model
    assert model.prior is not None
    guided = model.sampling.guidance > 0
    work = generation_parts(
        model.prior, model.schedule, model.tokenizer, batch=batch, guided=guided, dtype=dtype
    )
    every = [item for passes in work.values() for item in passes]
    whole = timings[f"default {dtype}"]
    seconds = {part: timings[f"{part} {dtype}"].seconds for part in ("quantizer", "decoder", "drawing")}
    left = max(whole.seconds - sum(seconds.values()), 1e-9)
    parts = {"transformer": left, **seconds}
    fractions = {part: limits.seconds(passes) / parts[part] for part, passes in work.items()}
    by_pass = limits.seconds_by_pass(work["transformer"]) / left
    plain, plain_float32 = timings[f"plain {dtype}"], timings["plain float32"]
    speedup, over_float32 = whole.speedup_over(plain), whole.speedup_over(plain_float32)
    return setting.row(
        whole.seconds, peak_bytes=None if whole.peak_bytes is None else whole.peak_bytes + weights,
        fraction_of_limit=limits.seconds(every) / whole.seconds, speedup=speedup,
        speedup_over_float32=over_float32, reference_seconds=plain.seconds,
        reference_float32_seconds=plain_float32.seconds, parts_seconds=parts,
        parts_fraction_of_limit=fractions, transformer_fraction_by_pass=by_pass, limits=limits_of(limits),
        flops=sum(item.flops for item in every), num_bytes=sum(item.num_bytes for item in every),
        told=[
            ", ".join(_share(part, value, fractions.get(part)) for part, value in parts.items()),
            f"transformer {100 * by_pass:.0f} % of the limit counted pass by pass",
            f"plain path {plain.seconds:.4g} s, in float32 {plain_float32.seconds:.4g} s "
            f"({over_float32:.2f} times the default)", limits_line(limits),
        ],
    )  # fmt: skip


def _share(part: str, seconds: float, fraction: float | None) -> str:
    """Of one part, in words."""
    return f"{part} {seconds:.3g} s" + (f" ({100 * fraction:.0f} % of the limit)" if fraction else "")


def measure_peaks(rows: Sequence[Row], sized: Sized) -> None:
    """Fill in the peaks of one size on the CPU: medians of processes, whose heaps fall differently."""
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "model"
        Generator(
            sized.model, random_tokenizer(sized.model, cpu), random_prior(sized.model, cpu)
        ).save(home, dtype=torch.bfloat16)  # fmt: skip
        weights = sum(file.stat().st_size for file in home.glob("*.safetensors")) // 2
        for row in rows:
            if (row["size"], row["px"]) == (sized.name, sized.px):
                once = partial(peak_of, "generate", folder=str(home), batch=row["batch"], dtype=row["dtype"])
                peak = statistics.median_low([once() for _ in range(_PEAKS)])
                row["peak_bytes"] = peak
                share = peak / (weights * WORD[row["dtype"]])
                row["told"] += [f"peak of a process of its own: {share:.2f} times its weights"]
