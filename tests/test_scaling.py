"""The ladder of a scaling study: end to end, stopped on the way, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from models_for_tests import write_pictures
from nextscale.cli import main
from nextscale.config import build
from nextscale.generate.folder import load_prior, read_settings
from nextscale.recipes import read_recipe
from nextscale.studies.plots import draw_power_laws
from nextscale.studies.scaling import Look, describe, fit, plan, run_rungs, run_scaling
from nextscale.studies.settings import ScalingStudy
from nextscale.train import loop as train_loop
from nextscale.train.logs import read_log
from nextscale.train.prior_base import PriorBase
from runs_for_tests import LOOP, make_home

SIZES = ((1, 8, 1), (1, 16, 2), (2, 32, 4))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures and a tokenizer, here; no drawings, which take longer than these trainings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PriorBase, "picture", lambda *_: None)
    monkeypatch.setattr(train_loop, "draw_curves", lambda *_: None)
    return make_home(tmp_path)


def _study(home: Path, **run: Any) -> ScalingStudy:
    rungs = [{"depth": d, "model_dim": w, "num_heads": n} for d, w, n in SIZES]
    return ScalingStudy.model_validate({
        "rungs": [*rungs[:2], {**rungs[2], "base_lr": 0.05}],
        "run": {
            "tokenizer_from": str(home / "given"), "prior": {"drop_path": 0.0}, "cache_views": 1,
            "data": {"source": str(home / "pictures"), "enlarge": 1.0}, "optimizer": {"base_lr": 0.1},
            "loop": LOOP, "ledger": {"fingerprint": False}, **run,
        },
    })  # fmt: skip


def _go(study: ScalingStudy, folder: Path) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    return run_scaling(study, folder, device="cpu", say=said.append, progress=False), said


def test_a_ladder_stopped_on_the_way_ends_as_one_that_was_not(home: Path) -> None:
    study = _study(home)

    def stop_at_the_second(line: str) -> None:
        if line.startswith("rung 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_scaling(study, home / "ladder", device="cpu", say=stop_at_the_second, progress=False)
    assert sorted(item.name for item in (home / "ladder").glob("depth*")) == ["depth1-width8"]
    first = (home / "ladder/depth1-width8/model/prior.safetensors").stat().st_mtime_ns
    result, said = _go(study, home / "ladder")
    assert (home / "ladder/depth1-width8/model/prior.safetensors").stat().st_mtime_ns == first
    assert said[0].startswith("rung 1 of 3, depth1-width8: ") and said[0].endswith(": done")
    whole, said = _go(study, home / "whole")
    assert [line.split(":")[0] for line in said if line.startswith("rung")] == [
        "rung 1 of 3, depth1-width8", "rung 2 of 3, depth1-width16", "rung 3 of 3, depth2-width32",
    ]  # fmt: skip
    assert result == whole == json.loads((home / "ladder/scaling.json").read_text())


def test_looks_are_those_of_the_logs_and_models(home: Path) -> None:
    study = _study(home)
    result, _ = _go(study, home / "ladder")
    for (depth, width, _heads), of_rung in zip(SIZES, plan(study), strict=True):
        folder = home / f"ladder/depth{depth}-width{width}"
        looks = [look for look in result["looks"] if look["rung"] == folder.name]
        assert [look["images"] for look in looks] == [24, 48]  # 6 and 12 steps of 4
        model = read_settings(folder / "model")
        count = sum(p.numel() for p in load_prior(folder / "model", model).parameters())
        assert {look["parameters"] for look in looks} == {count} == {of_rung.parameters}
        assert looks[-1]["flops"] == of_rung.training_flops * 48
        last = [record for record in read_log(folder / "log.jsonl") if record["kind"] == "evaluate"][-1]
        assert looks[-1]["loss"] == last["loss"] and looks[-1]["last_scale_loss"] == last["scale_loss_3"]
        assert looks[-1]["error"] == pytest.approx(1 - last["accuracy"])
        run = json.loads((folder / "run.json").read_text())
        assert (run["optimizer"]["base_lr"] == 0.05) == (depth == 2)


def test_the_first_size_makes_the_tokens_and_the_others_read_them(home: Path) -> None:
    _go(_study(home), home / "ladder")
    made = [path.parent.parent.name for path in (home / "ladder").glob("*/tokens/cache.json")]
    assert made == ["depth1-width8"]
    for name in ("depth1-width16", "depth2-width32"):
        run = json.loads((home / "ladder" / name / "run.json").read_text())
        assert run["tokens_from"] == str(home / "ladder/depth1-width8/tokens") and run["cache_views"] == 0


def _look(rung: str, parameters: int, flops: float, loss: float) -> Look:
    return Look(rung, parameters, 1, flops, loss, 2 * loss, loss / 10)


def test_laws_are_over_the_last_looks_and_over_the_frontier() -> None:
    def loss(parameters: int) -> float:
        return (1e-3 * parameters) ** -0.2

    looks = [
        look
        for size in (1000, 4000, 16000)
        for look in (
            _look(f"{size}", size, 1e6 * size, 3 * loss(size)), _look(f"{size}", size, 2e6 * size, loss(size))
        )
    ]  # fmt: skip
    laws = fit(looks, extrapolate=10)["laws"]
    law = laws["loss over parameters"]
    assert law["exponent"] == pytest.approx(-0.2) and law["factor"] == pytest.approx(1e-3)
    assert law["prediction"]["x"] == 160_000 and law["prediction"]["y"] == pytest.approx(loss(160_000))
    frontier = laws["loss over training FLOPs"]["points"]
    assert [x for x, _ in frontier] == [1e9, 2e9, 8e9, 3.2e10]  # early looks at large sizes are beaten
    assert laws["last_scale_loss over parameters"]["exponent"] == pytest.approx(-0.2)
    assert any(line.startswith("loss over parameters: (0.001 x)^-0.2") for line in describe({"laws": laws}))


def test_the_plot(tmp_path: Path) -> None:
    looks = [
        _look(f"{size}", size, 2 * size, 3 - size / 4e4 + (size % 7) / 50) for size in (1000, 4000, 16000)
    ]
    draw_power_laws(fit(looks, extrapolate=10), tmp_path / "laws.png")
    with Image.open(tmp_path / "laws.png") as picture:
        assert picture.width >= 1200 and picture.height >= 600  # three laws in two rows


def test_a_law_without_slope_has_no_factor() -> None:
    looks = [_look(f"{size}", size, size, 2.0) for size in (1000, 4000, 16000)]
    result = fit(looks, extrapolate=10)
    assert result["laws"]["loss over parameters"]["factor"] is None
    json.dumps(result, allow_nan=False)
    assert "loss over parameters: (x)^" in describe(result)[0]


def test_other_settings_than_those_of_finished_sizes_are_refused(home: Path) -> None:
    study = _study(home)
    _go(study, home / "ladder")
    with pytest.raises(ValueError, match=r"run.loop.num_steps = 12, not 13"):
        _go(_study(home, loop={**LOOP, "num_steps": 13}), home / "ladder")
    faster = study.rungs[0].model_copy(update={"base_lr": 0.2})
    with pytest.raises(ValueError, match=r"depth1-width8 holds a finished run, .*base_lr = 0.2, not 0.1"):
        _go(study.model_copy(update={"rungs": (faster, *study.rungs[1:])}), home / "ladder")


TOML = """
[scaling]
rungs = [{rungs}]
[scaling.run.prior]
drop_path = 0.0
[scaling.run.data]
enlarge = 1.0
[scaling.run.ledger]
fingerprint = false
[scaling.run.loop]
num_steps = 3
batch_size = 4
"""
GOOD = ", ".join(f"{{depth = {d}, model_dim = {w}, num_heads = {n}}}" for d, w, n in SIZES)
GIVEN = ["--run.data.source", "pictures", "--run.tokenizer_from", "given"]


def test_the_command_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "ladder.toml").write_text(TOML.format(rungs=GOOD))
    assert main(["scaling", "ladder.toml", *GIVEN, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("FLOPs of training") == 4
    assert not (home / "runs").exists()
    changes = ["--run.loop.batch_size=5", "--extrapolate", "4", "--device", "cpu"]
    assert main(["scaling", "ladder.toml", *GIVEN, *changes]) == 0
    assert (home / "runs/ladder/scaling.png").stat().st_size > 10_000
    out, err = capsys.readouterr()
    assert err == "" and "loss over parameters: (" in out
    assert "laws: runs/ladder/scaling.json   plot: runs/ladder/scaling.png" in out
    law = json.loads((home / "runs/ladder/scaling.json").read_text())["laws"]["loss over parameters"]
    assert law["prediction"]["x"] == pytest.approx(4 * law["points"][-1][0])


@pytest.mark.parametrize(
    ("rungs", "more", "message"),
    [
        (GOOD, ["--run.data.sourc", "x"],
         "unknown setting --run.data.sourc; did you mean --run.data.source?"),
        (GOOD.rpartition(", {")[0], GIVEN, "rungs: 2 sizes given: a power law needs at least 3"),
        (GOOD.rpartition(", {")[0] + ", {depth = 1, model_dim = 8, num_heads = 1}", GIVEN, "given twice"),
        (GOOD.replace("num_heads = 4", "num_heads = 5"), GIVEN,
         "rung depth2-width32: model_dim 32 is not divisible by num_heads 5"),
        (GOOD.replace("depth = 2, model_dim = 32", "depth = 1, model_dim = 12"), GIVEN,
         "give the rungs smallest first"),
        (GOOD, GIVEN[:2], "no tokenizer given: set --run.tokenizer_from"),
        (GOOD, GIVEN[2:], "source"),
        (GOOD, [*GIVEN, "--run.loop.patience", "2"], "would train sizes differently long"),
        (GOOD, [*GIVEN, "--run.prior.kind", "diffusion"], "it predicts no tokens"),
        (GOOD, [*GIVEN, "--run.init", "cifar10-tiny"], "fits one size at most"),
        (GOOD, [*GIVEN, "--run.cache_views", "1", "--run.data.on_bad_image", "skip"], "hold out different"),
        (GOOD, [*GIVEN, "--extrapolate", "0.5"], "extrapolate is '0.5'"),
        (GOOD, [*GIVEN, "--out", "pictures"], "pictures exists and is no run of nextscale"),
    ],
)  # fmt: skip
def test_refusals(
    home: Path, capsys: pytest.CaptureFixture[str], rungs: str, more: list[str], message: str
) -> None:
    (home / "ladder.toml").write_text(TOML.format(rungs=rungs))
    assert main(["scaling", "ladder.toml", *more]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err
    assert not list(home.glob("**/checkpoints"))


def test_a_recipe_without_a_ladder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scaling", "cifar10-tiny"]) == 2
    assert "recipe 'cifar10-tiny' has no stage 'scaling': it has tokenizer, prior" in capsys.readouterr().err


def test_the_recipe_spans_what_its_comment_says(tmp_path: Path) -> None:
    study = build(ScalingStudy, read_recipe("cifar10-scaling", "scaling"), source="cifar10-scaling")
    write_pictures(tmp_path, 10, (32, 32), num_classes=10)
    data = study.run.data.model_copy(update={"source": str(tmp_path)})
    costs = plan(study.model_copy(update={"run": study.run.model_copy(update={"data": data})}))
    assert len(costs) == 5 and costs[-1].parameters > 30 * costs[0].parameters
    assert [round(of.parameters / 1e6, 1) for of in costs] == [0.2, 0.6, 1.3, 3.5, 7.3]
    images = study.run.loop.num_steps * study.run.loop.batch_size
    assert images == 64_000
    assert sum(of.training_flops for of in costs) * images == pytest.approx(2.9e14, rel=0.01)
    for rung in study.rungs:
        assert rung.base_lr is not None and rung.base_lr * study.run.loop.batch_size / 256 <= 4e-3


def test_rungs_by_themselves_are_found_by_the_ladder(home: Path) -> None:
    study, folder = _study(home), home / "ladder"
    names = [rung.name for rung in study.rungs]
    for name in names:
        run_rungs(study, folder, [name], device="cpu", say=lambda _: None, progress=False)
    weights = {name: (folder / name / "model/prior.safetensors").read_bytes() for name in names}
    result, said = _go(study, folder)
    assert sum(line.endswith("done") for line in said) == len(names)
    alone, _ = _go(study, home / "in-one-go")
    assert result == alone
    for name in names:
        assert (home / "in-one-go" / name / "model/prior.safetensors").read_bytes() == weights[name]
    with pytest.raises(ValueError, match="unknown rung 'depth9': this ladder has depth1-width8, "):
        run_rungs(study, folder, ["depth9"], device="cpu", say=lambda _: None, progress=False)
