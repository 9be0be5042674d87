"""``nextscale sample --format``: what is in the shards, going on after a kill, and several processes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy
import pytest

from evaluation_for_tests import outcome
from models_for_tests import random_generator
from nextscale import Generator
from nextscale.cli import main
from nextscale.data.sources.find import open_source
from nextscale.generate.provenance import read_png
from ranks_for_tests import finish, start

LINE = (
    "sample model --labels frog 2 none --per-label 5 --shard-size 6 --batch 4 --top-k 9 --seed 7 --device cpu"
)
MANY = "sample model --per-label 200 --shard-size 40 --batch 8 --device cpu"  # 50 shards
LABELS = [6] * 5 + [2] * 5 + [None] * 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "model"
    random_generator().save(folder)
    return folder


@pytest.fixture
def here(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(model)
    return tmp_path


def files(folder: str) -> dict[str, bytes]:
    """What lies in a folder, but for the lock."""
    return {item.name: item.read_bytes() for item in Path(folder).iterdir() if item.name != ".lock"}


def check_notes(folder: str) -> int:
    """Hold every shard against what lies beside it; returns how many there are."""
    notes = list(Path(folder).glob("*.sha256"))
    for note in notes:
        found, name = note.read_text().split()
        assert hashlib.sha256(Path(folder, name).read_bytes()).hexdigest() == found
    return len(notes)


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_our_sources_read_the_shards(here: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"{LINE} --format {kind} --dtype float32"
    assert outcome(f"{line} --out one", capsys)[:2] == (0, "15 images in 3 shards: one\n")
    assert check_notes("one") == 3
    source = open_source("one")
    generator = Generator.load("model")
    assert source.labels.tolist() == [10 if label is None else label for label in LABELS]
    if kind == "parquet":
        assert source.class_names == (*generator.class_names, "none")
    for first, last in ((0, 4), (4, 6), (6, 10)):  # batches begin anew in every shard
        images = generator(LABELS[first:last], seeds=range(7 + first, 7 + last), top_k=9).images
        for index in range(first, last):
            pixels, record = read_png(io.BytesIO(source.read(index)))
            assert (pixels == images[index - first]).all()
            assert (record.label, record.seed, record.batch) == (LABELS[index], 7 + index, last - first)
    assert main([*line.split(), "--out", "two"]) == 0
    assert files("one") == files("two")


def test_labels_names_and_seeds(here: Path) -> None:
    import pyarrow.parquet

    assert main([*LINE.split(), "--format", "parquet", "--out", "table"]) == 0
    assert main([*LINE.split(), "--format", "webdataset", "--out", "tars"]) == 0
    table = pyarrow.parquet.read_table("table/shard-00001.parquet").to_pylist()
    assert [row["class_name"] for row in table] == ["bird"] * 4 + ["none"] * 2
    assert [row["seed"] for row in table] == list(range(13, 19))
    with tarfile.open("tars/shard-00001.tar") as tar:
        names = tar.getnames()
        about = [json.load(tar.extractfile(name)) for name in names if name.endswith(".json")]  # type: ignore[arg-type]
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}
    assert names[:3] == ["000000006.png", "000000006.cls", "000000006.json"]
    assert [(row["class_name"], row["seed"]) for row in about] == [
        (row["class_name"], row["seed"]) for row in table
    ]


def test_what_is_there_is_kept_and_what_is_damaged_made_again(here: Path) -> None:
    command = [*LINE.split(), "--format", "webdataset", "--out", "out"]
    assert main(command) == 0
    before = files("out")
    kept = Path("out/shard-00001.tar").stat().st_mtime_ns
    Path("out/shard-00000.tar").write_bytes(b"damaged")
    Path("out/shard-00002.tar.sha256").unlink()
    Path("out/.shard-00002.tar.half").write_bytes(b"half")
    assert main(command) == 0
    assert files("out") == before
    assert Path("out/shard-00001.tar").stat().st_mtime_ns == kept


def test_refusals(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"{LINE} --format parquet"
    for more, message in (
        ("--png", "--png has no effect on --format parquet"),
        ("--keep-best 0.5", "--keep-best has no effect"),
        ("--shard-size 0", "--shard-size 0 must be at least 1"),
        ("--batch 0", "--batch 0 must be at least 1"),
        ("--top-k 9999", "top_k 9999 is out of range"),
        ("--seed -3", "seed -3 must be a whole number"),
        ("--labels forg", "unknown class 'forg'"),
        ("--num-steps 3", "num_steps would have no effect"),
    ):
        code, out, err = outcome(f"{line} {more} --out new", capsys)
        assert (code, out) == (2, "") and message in err, err
        assert not Path("new").exists()
    assert "--shard-size 6 belongs to --format" in outcome(f"{LINE} --out new", capsys)[2]
    assert outcome(f"{line} --out out", capsys)[0] == 0
    for more, message in (
        ("--top-k 8", "out holds a run with sampling.top_k = 9, not 8: give the same settings"),
        ("--format webdataset", "out holds a run with format"),
        ("--batch 5", "out holds a run with batch = 4, not 5"),
    ):
        code, _, err = outcome(f"{line} {more} --out out", capsys)
        assert code == 2 and message in err, err
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "needs pyarrow: pip install 'nextscale[train]'" in outcome(f"{line} --out other", capsys)[2]


def test_asked_to_stop_it_leaves_whole_shards_and_goes_on(here: Path) -> None:
    line = f"{MANY} --format webdataset --out"
    command = [sys.executable, "-m", "nextscale.cli", *line.split(), "out"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 100
        while not list(Path("out").glob("*.sha256")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75, err
    whole = check_notes("out")
    assert 0 < whole < 50 and f"stopped with {whole} of 50 shards; run the same command again to go on" in err
    assert len(list(Path("out").glob("*.tar"))) == whole and not list(Path("out").glob(".shard*"))
    assert main([*line.split(), "out"]) == main([*line.split(), "at-once"]) == 0
    assert files("out") == files("at-once") and check_notes("out") == 50


@pytest.mark.slow
def test_two_processes_write_the_same_files(here: Path) -> None:
    """Of three shards the first process has two. One that got lost is made again."""
    command = ["-m", "nextscale.cli", *LINE.split(), "--format", "parquet", "--out"]
    assert main([*command[2:], "one"]) == 0
    (code, out, err), other = finish(start([*command, "two"]))
    assert (code, out, other[0], other[1]) == (0, "15 images in 3 shards: two\n", 0, ""), err
    assert files("one") == files("two")
    os.remove("two/shard-00001.parquet")
    results = finish(start([*command, "two"]))
    assert [code for code, _, _ in results] == [0, 0] and files("one") == files("two")


@pytest.mark.slow
def test_two_processes_are_stopped_and_refused_together(here: Path) -> None:
    line = f"{MANY} --format webdataset"
    processes = start(["-m", "nextscale.cli", *line.split(), "--out", "out"])
    deadline = time.monotonic() + 100
    while not list(Path("out").glob("*.sha256")) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    results = finish(processes)
    assert [code for code, _, _ in results] == [75, 75], results
    whole = check_notes("out")
    assert 0 < whole < 50 and f"stopped with {whole} of 50 shards" in results[0][2]
    results = finish(start(["-m", "nextscale.cli", *line.split(), "--out", "out", "--seed", "1"]))
    assert [code for code, _, _ in results] == [2, 2] and "holds a run with seed = 0, not 1" in results[0][2]
    assert results[1][2] == ""
    assert main([*line.split(), "--out", "out"]) == 0  # one process finishes what two began
    assert numpy.bincount(open_source("out").labels).tolist() == [200] * 10 and check_notes("out") == 50
