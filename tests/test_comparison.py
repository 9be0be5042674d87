"""A comparison of three toy families, end to end: stopped everywhere, gone on with, and read again."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comparisons_for_tests import STUDY, toy_study, write_images
from models_for_tests import CLASSES
from nextscale.checkpoint import read_tensors
from nextscale.cli import main
from nextscale.generate.folder import load_prior, read_settings
from nextscale.generate.generator import Generator
from nextscale.studies import comparison, families
from nextscale.studies.comparison import run_comparison
from nextscale.studies.quality import on_the_way
from nextscale.train import loop as train_loop
from nextscale.train.logs import read_log
from nextscale.train.prior_base import PriorBase
from nextscale.train.tokenizer_task import TokenizerTask

KINDS = ("next_scale", "next_token", "diffusion")


class Page(HTMLParser):
    """What stands on a page: tables as rows of cells, pictures, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.pictures: dict[str, str] = {}
        self.words, self.open, self._rows, self._in_cell = "", list[str](), list[list[str]](), False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)
        if tag == "table":
            self._rows = self.tables.setdefault(given["id"], [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
            self._in_cell = True
        elif tag == "img":
            self.pictures[given["alt"]] = given["src"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "every element is closed where it should be"
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.words += data
        if self._in_cell:
            self._rows[-1][-1] += data


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "cifar")


class _Enough(Exception):
    """Stands for a kill."""


def _quiet(patch: pytest.MonkeyPatch) -> None:
    """No drawings of the trainings, which take longer than these."""
    patch.setattr(train_loop, "draw_curves", lambda *_: None)
    patch.setattr(PriorBase, "picture", lambda *_: None)
    patch.setattr(TokenizerTask, "picture", lambda *_: None)


@pytest.fixture(scope="module")
def done(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    """A finished study that was cut off after every line that it said, with what it said in the end."""
    folder = tmp_path_factory.mktemp("study") / "toys"
    seen: set[str] = set()
    said: list[str] = []

    def cut_off(line: str) -> None:
        said.append(line)
        started = line.startswith(("tokenizer of", "prior ", "reconstructions of", "scores of", "times"))
        if started and not line.endswith("done") and line not in seen:
            seen.add(line)
            raise _Enough

    with pytest.MonkeyPatch.context() as patch:
        _quiet(patch)
        for _ in range(20):
            said.clear()
            try:
                report = run_comparison(
                    toy_study(images),
                    folder,
                    device="cpu",
                    say=cut_off,
                    progress=False,
                    command="compare toys",
                )
                break
            except _Enough:
                continue
    assert len(seen) == 12  # two tokenizers, three priors, their limits and scores, times
    return folder, report, said


def test_each_tokenizer_is_trained_once(done: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, _, said = done
    assert sorted(place.name for place in (folder / "tokenizers").iterdir()) == ["next_scale", "next_token"]
    assert "tokenizer of diffusion: done" in said and "prior of diffusion: done" in said


def test_trainings_are_equally_large_and_long(done: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, report, _ = done
    rows = {row["name"]: row for row in report["rows"]}
    values = {name: {k: v["value"] for k, v in row["values"].items()} for name, row in rows.items()}
    for kind in KINDS:
        model = folder / "priors" / kind / "model"
        count = sum(p.numel() for p in load_prior(model, read_settings(model)).parameters())
        assert values["parameters"][kind] == count
        last = [r for r in read_log(folder / "priors" / kind / "log.jsonl") if r["kind"] == "evaluate"][-1]
        assert last["step"] == values["steps"][kind] == values["images seen"][kind] / 4
    assert values["steps"]["next_scale"] == 8 and values["steps"]["next_token"] == 11  # 6.8 x 8 / 5.1
    flops = values["training FLOPs"]
    for kind in KINDS:  # up to half a step
        assert abs(flops[kind] / flops["next_scale"] - 1) <= 0.5 / values["steps"][kind] + 1e-9
    assert rows["training FLOPs"]["winner"] == ""
    assert values["tokenizer training FLOPs"]["diffusion"] == values["tokenizer training FLOPs"]["next_scale"]
    # of 40 images four are held out; kept tokens are made once, diffusion encodes at every step
    of_one = values["encoding FLOPs"]["next_scale"] / 36
    assert values["encoding FLOPs"]["diffusion"] == of_one * values["images seen"]["diffusion"]


def test_scores_are_of_the_named_samples(done: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, report, _ = done
    rows = {row["name"]: row for row in report["rows"]}
    for kind in KINDS:
        main = json.loads((folder / "scores" / kind / "main/scores.json").read_text())
        value = rows["FD-CIFAR"]["values"][kind]
        assert value == main["scores"]["FD-CIFAR"] and main["samples"]["count"] == 24
        assert main["reference"]["kind"] == "training" and main["reference"]["count"] == 36
        agreed = rows["class agreement"]["values"][kind]
        assert agreed["value"] == main["class_agreement"] and agreed["low"] <= agreed["value"]
        looks = report["looks"][kind]
        assert [look["step"] for look in looks][-1] == rows["steps"]["values"][kind]["value"]
        assert len(looks) == 2 and looks[0]["flops"] < looks[1]["flops"]
        assert looks[0]["FD-CIFAR"] != looks[1]["FD-CIFAR"]
        assert looks[1]["FD-CIFAR"] == rows["FD-CIFAR, few samples"]["values"][kind]["value"]
    ways = [(way["family"], way["sampling"], way["steps"]) for way in report["samplings"]]
    better, worse = (
        report["chosen"]["next_scale"],
        ({"plain", "guided"} - set(report["chosen"].values())).pop(),
    )
    assert set(ways) == {
        ("next_scale", better, 3), ("next_scale", worse, None), ("next_token", "own", 16),
        ("diffusion", "ddim 3", 3), ("diffusion", "ddpm 5", 5),
    }  # fmt: skip
    distances = {way["sampling"]: way["FD-CIFAR"] for way in report["samplings"]}
    assert len(set(distances.values())) == 5 and distances[better] < distances[worse]
    assert rows["FD-CIFAR, few samples"]["values"]["next_scale"]["value"] == distances[better]
    assert "next_scale '" + better + "' of 2" in rows["FD-CIFAR, few samples"]["meaning"]


def test_limits_are_those_of_the_tokenizers(done: tuple[Path, dict[str, Any], list[str]]) -> None:
    _, report, _ = done
    rows = {row["name"]: row for row in report["rows"]}
    for name in ("rFD-CIFAR of reconstructions", "PSNR of reconstructions"):
        assert rows[name]["winner"] == "" and len({str(v) for v in rows[name]["values"].values()}) == 3
    assert rows["class agreement of reconstructions"]["winner"] == ""
    for kind, limit in report["limits"].items():
        assert limit["reference"]["kind"] == "validation" and limit["reference"]["count"] == 4
        assert limit["quantized"] is (kind != "diffusion")
        assert ("usage_0" in limit["reconstruction"]) is (kind != "diffusion")
        assert rows["PSNR of reconstructions"]["values"][kind]["value"] == limit["reconstruction"]["psnr"]


def test_a_look_is_at_the_averaged_weights_of_that_step(
    done: tuple[Path, dict[str, Any], list[str]], images: Path
) -> None:
    folder, report, _ = done
    step = report["looks"]["next_scale"][0]["step"]
    trained = Generator.load(folder / "priors/next_scale/model")
    generator = on_the_way(folder / "priors/next_scale", step, trained, dtype="float32")
    assert not generator.prior.head.weight.equal(trained.prior.head.weight)
    file = folder / f"priors/next_scale/checkpoints/step-{step:08d}/average.safetensors"
    assert generator.prior.head.weight.equal(read_tensors(file)["head.weight"])


def test_times(done: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, report, _ = done
    times = json.loads((folder / "times.json").read_text())
    assert report["times"] == times and len(times["times"]) == 4 * 2
    for row in times["times"]:
        assert row["seconds"] == row["all_seconds"][0] > 0
        assert row["seconds"] == pytest.approx(row["seconds_per_step"] * row["steps"])
    row = next(row for row in report["rows"] if row["name"] == "seconds, batch 2")
    seconds = {name: value["value"] for name, value in row["values"].items()}
    assert row["winner"] == min(seconds, key=lambda name: seconds[name])


def test_the_page_is_whole(done: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, report, _ = done
    page = Page((folder / "report.html").read_text())
    assert page.open == []
    head, *rows = page.tables["figures"]
    assert head == ["", *KINDS, "winner"]
    assert len(rows) == len(report["rows"]) and all(len(row) == 5 for row in rows)
    for cells, row in zip(rows, report["rows"], strict=True):
        assert cells[0].startswith(row["name"]) and row["meaning"] in cells[0] and cells[4] == row["winner"]
    assert len(page.tables["samplings"]) == 6
    for name in ("FD-CIFAR", "class agreement", "seconds per sampling step, batch 1", "parameters"):
        assert any(cells[0].startswith(name) for cells in rows), name
    assert len(page.pictures) == 5
    sizes = {}
    for alt, source in page.pictures.items():
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            sizes[alt] = picture.size
    assert len({sizes[f"samples of {kind}"] for kind in KINDS}) == 1
    for words in ("compare toys", "36 training images", *CLASSES, "Warning", '"num_samples": 24'):
        assert words in page.words, words
    assert "http" not in (folder / "report.html").read_text()  # nothing is fetched


def test_going_on_with_a_finished_study_does_nothing_twice(
    done: tuple[Path, dict[str, Any], list[str]], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, report, _ = done
    monkeypatch.setattr(families, "train_once", _only_finished(families.train_once))
    said: list[str] = []
    again = run_comparison(
        toy_study(images), folder, device="cpu", say=said.append, progress=False, command="compare toys"
    )
    assert again == report and "times: done" in said
    (folder / "scores/next_scale/samplings/plain/scores.json").unlink()  # as if it had been cut off there
    with pytest.raises(ValueError, match=r"plain holds scores of .*'count': 12.*, not of .*'count': 11"):
        changed = toy_study(images, few_samples=11)
        run_comparison(changed, folder, device="cpu", say=said.append, progress=False)
    again = run_comparison(
        toy_study(images), folder, device="cpu", say=said.append, progress=False, command="compare toys"
    )
    assert again == report
    with pytest.raises(ValueError, match="holds a run with looks = 2, not 1"):
        run_comparison(toy_study(images, looks=1), folder, device="cpu", say=said.append, progress=False)


def _only_finished(train_once: Any) -> Any:
    def once(run: Any, place: Path, **named: Any) -> None:
        assert (place / "model/config.json").is_file()
        train_once(run, place, **named)

    return once


def test_the_command_line(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("toys.toml").write_text(STUDY)
    given: list[Any] = []

    def run(study: Any, folder: Path, **named: Any) -> dict[str, Any]:
        given.extend([study, folder, named["command"]])
        return {"rows": [{
            "name": "FD", "winner": "a", "values": {"a": {"value": 1.0}, "b": {"value": 2.5}},
        }]}  # fmt: skip

    monkeypatch.setattr(comparison, "run_comparison", run)
    line = ["compare", "toys.toml", "--data.source", str(images), "--num_samples", "30"]
    assert main([*line, "--dry-run"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [text.split(":")[0] for text in out] == list(KINDS) and given == []
    assert main(line) == 0
    assert "FD: a 1, b 2.5; winner: a" in capsys.readouterr().out
    study, folder, command = given
    assert study.num_samples == 30 and study.data.source == str(images) and folder == Path("runs/toys")
    assert command == f"nextscale compare toys.toml --out runs/toys {' '.join(line[2:])}"
