"""``nextscale bench``: a card and one line of JSON, and refusals in a line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest
from torch import Tensor

from nextscale.cli import main
from nextscale.cli.bench_sizes import sized_models
from nextscale.prior.settings import PriorSettings
from nextscale.scales import PRESETS
from nextscale.tokenizer.model import Tokenizer
from nextscale.tokenizer.settings import Precision

FIELDS = {
    "size": str, "px": int, "batch": int, "dtype": str, "seconds": float, "images_per_second": float,
    "fraction_of_limit": float,
}  # fmt: skip


def _bench(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[list[str], dict[str, Any]]:
    assert main(["bench", *words, "--device", "cpu", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    for row in found["rows"]:
        for name, kind in FIELDS.items():
            assert type(row[name]) is kind, name
        assert row["seconds"] > 0
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["seconds"])
        assert 0 < row["fraction_of_limit"] < 1.2
        assert {"peak_bytes", "speedup"} <= set(row)
    return lines, found


def test_generate(capsys: pytest.CaptureFixture[str]) -> None:
    lines, found = _bench(capsys, "generate", "--sizes", "tiny", "--batch", "2")
    assert found["bench"] == "generate" and found["versions"]["torch"]
    rows = found["rows"]
    assert [(row["size"], row["px"], row["batch"], row["dtype"]) for row in rows] == [
        ("tiny", 32, 2, "float32"), ("tiny", 32, 2, "bfloat16"),
    ]  # fmt: skip
    for row in rows:
        assert 0.1 < row["speedup"] < 30 and 1e7 < row["peak_bytes"] < 1e9
        assert set(row["parts_seconds"]) == {"transformer", "quantizer", "decoder", "drawing"}
        assert set(row["parts_fraction_of_limit"]) == {"transformer", "quantizer", "decoder"}
        assert row["limits"]["copy_bytes_per_second"] > 1e8
        assert set(row["limits"]["flops_per_second"]) == {"float32", "bfloat16", "int8"}
        assert row["speedup_over_float32"] > 0 and row["reference_seconds"] > 0
    assert "images/s" in lines[1] and "tiny" in lines[2]
    assert any("transformer" in line for line in lines[:-1])


def test_train(capsys: pytest.CaptureFixture[str]) -> None:
    lines, found = _bench(capsys, "train", "--sizes", "tiny", "--batch", "2", "--dtype", "bfloat16")
    (row,) = found["rows"]
    assert 0.1 < row["speedup"] < 30 and row["peak_bytes"] > 4 * 5e6
    assert 0 < row["fraction_of_matrix_rate"] <= 1.2
    assert any("% of the rate" in line for line in lines)


def test_tokenize(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    encode, precisions = Tokenizer.encode, set()

    def spy(self: Tokenizer, images_BCHW: Tensor, *, precision: Precision = "float32") -> Tensor:
        precisions.add(precision)
        return encode(self, images_BCHW, precision=precision)

    monkeypatch.setattr(Tokenizer, "encode", spy)
    _, found = _bench(capsys, "tokenize", "--sizes", "tiny", "--batch", "2", "--workers", "0")
    rows = found["rows"]
    assert [(row["what"], row["dtype"]) for row in rows] == [
        ("files", "float32"), ("encoder", "float32"), ("quantiser", "float32"),
        ("files", "bfloat16"), ("encoder", "bfloat16"),
    ]  # fmt: skip
    assert all(row["speedup"] > 0 for row in rows)
    assert precisions == {"float32", "bfloat16"}
    assert rows[0]["peak_bytes"] > 1e6 and rows[0]["seconds"] > rows[1]["seconds"]


def test_compare(capsys: pytest.CaptureFixture[str]) -> None:
    lines, found = _bench(capsys, "compare", "--sizes", "tiny", "--dtype", "float32")
    rows = {row["what"]: row for row in found["rows"]}
    ways = [f"{family}, {way}" for family in ("next_scale", "next_token") for way in ("best", "plain")]
    assert list(rows)[:4] == ways
    diffusion = rows[list(rows)[4]]
    assert diffusion["scaled_from"] == {"steps": 2, "of": 250} and diffusion["speedup"] is None
    assert rows["next_scale, plain"]["speedup"] == 1.0
    assert rows["next_scale, best"]["times_next_scale_best"] == 1.0
    assert 1e7 < rows["next_scale, best"]["peak_bytes"] < 1e9
    assert rows["next_token, plain"]["times_next_scale_plain"] > 1
    assert any("*" in line for line in lines) and any("times as long" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "--sizes", "d17"], "unknown size 'd17': expected one of tiny, d8, .*; did you mean d1"),
        (["generate", "--sizes", "d16,"], "--sizes 'd16,': expected one or several, parted by commas"),
        (["generate", "--sizes", "tiny,tiny"], "--sizes names tiny at 32 px, tiny at 32 px: give each once"),
        (["generate", "--sizes", "tiny", "--px", "256"], "--px 256: tiny comes with images of 32 pixels"),
        (["train", "--sizes", "d16", "--px", "384"], "--px 384: d16 comes with images of 256 or 512 pixels"),
        (["compare", "--batch", "0"], "--batch '0': expected whole numbers from 1"),
        (["compare", "--batch", "one"], "--batch 'one': expected whole numbers from 1"),
        (["tokenize", "--batch", "2,2"], "--batch names 2, 2: give each once"),
        (["generate", "--dtype", "float16"], "dtypes.0 is 'float16': input should be 'float32'"),
        (["generate", "--rounds", "0"], "rounds is 0: input should be greater than or equal to 1"),
        (["generate", "--device", "tpu"], "device 'tpu' is not available here"),
        (["generate", "--sizes", "d30", "--batch", "100000"], "d30 at 256 px, batch 100000, needs about"),
        (["train", "--sizes", "d30", "--batch", "100000"], "d30 at 256 px, batch 100000, needs about"),
        (["tokenize", "--batch", "100000"], "d16 at 256 px, batch 100000, needs about"),
        (["compare", "--batch", "100000"], "d16 at 256 px, batch 100000, needs about"),
        (["generate", "--size", "d16"], "bench does not know '--size'; did you mean --sizes"),
        (["generate", "--compile"], "bench does not know '--compile'"),
        (["train", "--workers", "2"], "bench does not know '--workers'"),
        ([], "required: ACTION"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_refusals(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: int | str | None = main(["bench", *words])
    except SystemExit as stop:
        code = stop.code
    complaint = capsys.readouterr().err
    assert code == 2 and complaint.count("\n") == 1
    assert re.search(message, complaint), complaint


def test_sizes_are_those_of_the_recipes() -> None:
    small, large, wide, published = sized_models(["d16", "d36", "d30"], None) + sized_models(["d16"], [512])
    assert (small.px, large.px, wide.px, published.px) == (256, 512, 256, 512)
    assert small.model.schedule == PRESETS[256] and large.model.schedule == PRESETS[512]
    assert published.model.schedule == PRESETS[512] and published.model.prior == small.model.prior
    for sized, depth in ((small, 16), (large, 36), (wide, 30)):
        assert isinstance(sized.model.prior, PriorSettings) and sized.model.prior.depth == depth
        assert sized.run.prior == sized.model.prior and len(sized.model.class_names) == 1000
    assert sized_models(["d8"], None)[0].model.prior == small.model.prior.model_copy(update={"depth": 8})


def test_help_costs_no_torch() -> None:
    code = "import sys\nfrom nextscale.cli.bench_sizes import sized_models\nsized_models(['d16'], None)"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\nassert 'torch' not in sys.modules"], capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr
