"""Priors trained from kept tokens: the same losses to the bit, resumption, what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from models_for_tests import write_pictures
from nextscale import Generator
from nextscale.checkpoint import read_tensors
from nextscale.cli import main
from nextscale.data import tokenizing
from nextscale.data.token_cache import TokenCache
from nextscale.distributed import choose_device
from nextscale.train import run as train_run_module
from nextscale.train.logs import read_log
from nextscale.train.prior_task import PriorTask
from nextscale.train.settings import PriorRun
from runs_for_tests import STEPS, make_home, tiny_run, train_quietly

VIEWS = ["--views", "3", "--flip", "--enlarge", "1.25", "--quiet"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, a tokenizer, and its tokens: of all pictures, and of those that are not held out."""
    home = make_home(tmp_path_factory.mktemp("tokens"))
    given = ["tokenize", str(home / "pictures"), "--model", str(home / "given"), *VIEWS]
    assert main([*given, "--out", str(home / "all")]) == 0
    assert main([*given, "--out", str(home / "most"), "--validation-share", "0.02"]) == 0
    return home


def _run(home: Path, *, data: dict[str, Any] | None = None, **changes: Any) -> PriorRun:
    """The run of `tiny_run` (twelve steps, which is 2.5 epochs), changed."""
    tree = tiny_run("prior", home).model_dump()
    return PriorRun.model_validate({**tree, **changes, "data": {**tree["data"], **(data or {})}})


def _task(run: PriorRun, folder: Path) -> PriorTask:
    """The task of a run, as `train_run` builds it."""
    source, validation = train_run_module._open(run)
    torch.manual_seed(run.loop.seed)
    task = PriorTask(run, source=source, validation=validation, device=choose_device("cpu"), folder=folder)
    task.prepare(progress=False)
    return task


def _runs_from_tokens(home: Path) -> dict[str, tuple[PriorRun, PriorRun]]:
    """Each way to keep tokens, with the run on the fly that it stands for."""
    pictures = str(home / "pictures")
    held = {"source": pictures, "validation": pictures}
    return {
        "most": (_run(home, tokens_from=str(home / "most")), _run(home)),
        "all": (
            _run(home, tokens_from=str(home / "all"), data={**held, "source": ""}),
            _run(home, data=held),
        ),
        "views": (_run(home, cache_views=3), _run(home)),
        "views in bfloat16": (
            _run(home, cache_views=3, encode_precision="bfloat16"),
            _run(home, encode_precision="bfloat16"),
        ),
        "views of all": (_run(home, cache_views=3, data=held), _run(home, data=held)),
        "center": (
            _run(home, cache_views=1, data={"flip": False, "enlarge": 1.0}),
            _run(home, data={"flip": False, "enlarge": 1.0}),
        ),
    }


WAYS = ["most", "all", "views", "views in bfloat16", "views of all", "center"]


@pytest.mark.parametrize("way", WAYS)
def test_losses_from_kept_tokens_are_those_on_the_fly_to_the_bit(
    way: str, home: Path, tmp_path: Path
) -> None:
    kept, fresh = (_task(run, tmp_path) for run in _runs_from_tokens(home)[way])
    num_steps = 3 * len(kept.source.labels) // kept.run.loop.batch_size
    for mine, given in zip(kept.batches(range(num_steps)), fresh.batches(range(num_steps)), strict=True):
        assert mine.items.dtype == torch.int64 and given.items.dtype == torch.float32
        losses = [task.loss(batch)[0] for task, batch in ((kept, mine), (fresh, given))]
        assert torch.equal(*losses)


@pytest.mark.parametrize("way", WAYS)
def test_a_whole_training_from_kept_tokens(way: str, home: Path, tmp_path: Path) -> None:
    kept, fresh = _runs_from_tokens(home)[way]
    scores, said = train_quietly(kept, tmp_path / "kept")
    assert scores == train_quietly(fresh, tmp_path / "fresh")[0]
    assert said[0].split(",")[0] == f"{20 if 'all' in way else 19} images of 3 classes"
    for file in (tmp_path / "fresh" / "model").glob("*.safetensors"):
        assert (tmp_path / "kept" / "model" / file.name).read_bytes() == file.read_bytes()
    made_here = (tmp_path / "kept" / "tokens" / "cache.json").exists()
    assert made_here == bool(kept.cache_views)
    recorded = json.loads((tmp_path / "kept" / "run.json").read_text())
    assert ("tokens_sha256" in recorded) == bool(kept.tokens_from)


def test_epochs_beyond_the_views_read_them_again(home: Path, tmp_path: Path) -> None:
    two = _task(_run(home, cache_views=2), tmp_path / "two")
    three = _task(_run(home, cache_views=3), tmp_path / "three")
    items = {}
    for name, task in (("two", two), ("three", three)):
        items[name] = {
            (position // 19, int(sample)): row
            for step, batch in enumerate(task.batches(range(15)))
            for position, row, sample in zip(
                range(4 * step, 4 * step + 4), batch.items, batch.samples_B, strict=True
            )
        }
    for (epoch, sample), row in items["two"].items():
        assert torch.equal(row, items["three"][epoch % 2, sample]) if epoch < 3 else epoch == 3
    assert any(not torch.equal(items["two"][2, i], items["three"][2, i]) for i in range(19))


@pytest.mark.parametrize("way", ["all", "views"])
def test_a_resumed_training_equals_an_undisturbed_one(
    way: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = _runs_from_tokens(home)[way]
    train_quietly(run, tmp_path / "whole")
    after_step, make = PriorTask.after_step, tokenizing._write_progress

    def stop(self: PriorTask, number: int) -> None:
        if number == 9:
            raise KeyboardInterrupt
        after_step(self, number)

    def stop_tokens(folder: Path, made_from: Any, num_rows: int) -> None:
        make(folder, made_from, num_rows)
        if num_rows:
            raise KeyboardInterrupt

    if way == "views":
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(tokenizing, "_write_progress", stop_tokens)
            train_quietly(run, tmp_path / "parts")
        assert not (tmp_path / "parts" / "checkpoints").exists()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PriorTask, "after_step", stop)
        train_quietly(run, tmp_path / "parts")
    assert "going on after step 8 of 12" in train_quietly(run, tmp_path / "parts")[1]
    for name in ("module", "average", "optimizer"):
        place = Path("checkpoints") / f"step-{STEPS:08d}" / f"{name}.safetensors"
        mine, theirs = (read_tensors(tmp_path / folder / place) for folder in ("parts", "whole"))
        assert all(torch.equal(mine[key], value) for key, value in theirs.items())


def test_tokens_are_made_once(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run(home, cache_views=2)
    first = _task(run, tmp_path)
    again = PriorTask(
        run, source=first.source, validation=first.validation, device=first.device, folder=tmp_path
    )
    monkeypatch.setattr(again.tokenizer, "encode", lambda _: pytest.fail("encoded again"))
    again.prepare(progress=False)
    assert isinstance(again.cache, TokenCache) and len(again.cache.tokens_VNL) == 2


# refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache_views": 2}, "cache_views 2 would have no effect, since tokens_from gives the tokens"),
        ({"data": {"num_workers": 3}}, r"data\.num_workers 3 would have no effect"),
        ({"data": {"validation": "pictures"}}, r"data\.source .*pictures would have no effect"),
        ({"tokens_from": "", "cache_views": -1}, "greater than or equal to 0"),
        (
            {"tokens_from": "", "cache_views": 2, "data": {"flip": False, "enlarge": 1.0}},
            r"cache_views 2 without data\.flip and with data\.enlarge 1 would keep the same center crop",
        ),
    ],
    ids=str,
)
def test_settings_without_effect(changes: dict[str, Any], message: str, home: Path) -> None:
    with pytest.raises(ValueError, match=message):
        _run(home, **{"tokens_from": "somewhere", **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loop": {"seed": 1}}, r"was made with seed = 0, not 1 as in this run"),
        ({"data": {"enlarge": 1.125}}, r"was made with enlarge = 1.25, not 1.125"),
        ({"data": {"flip": False}}, r"was made with flip = true, not false"),
        ({"encode_precision": "bfloat16"}, r"was made with precision = \"float32\", not \"bfloat16\""),
        ({"data": {"validation_share": 0.1}}, r"with num_samples = 19, not 18|with held_out = 0.02, not 0.1"),
        ({"tokens_from": "all"}, r"with held_out = null, not 0.02"),
        ({"tokens_from": "nowhere"}, r"nowhere holds no token cache: make one with nextscale tokenize"),
        ({"data": {"source": ""}}, r"no validation images given: set data\.validation, or data\.source"),
        ({"data": {"source": "fewer"}}, r"with num_samples = 19, not 5 as in this run"),
        ({"data": {"source": "renamed"}}, r'with class_names = \["class 00", .*, not \["class 00", '),
    ],
    ids=str,
)
def test_tokens_that_do_not_fit(
    changes: dict[str, Any], message: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "fewer", 6, (9, 9), num_classes=3)
    shutil.copytree(home / "pictures", tmp_path / "renamed")
    (tmp_path / "renamed" / "class 02").rename(tmp_path / "renamed" / "class 03")
    for name in ("all", "most", "pictures"):
        (tmp_path / name).symlink_to(home / name)
    monkeypatch.chdir(tmp_path)
    tree = tiny_run("prior", home).model_dump()
    data = {**tree["data"], "source": "pictures", **changes.get("data", {})}
    loop = {**tree["loop"], **changes.get("loop", {})}
    run = PriorRun.model_validate({**tree, "tokens_from": "most", **changes, "data": data, "loop": loop})
    with pytest.raises(ValueError, match=message):
        train_quietly(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tokens_of_another_tokenizer(home: Path, tmp_path: Path) -> None:
    other = Generator.load(home / "given")
    with torch.no_grad():
        other.tokenizer.quantizer.codebook.weight[0] += 1
    other.save(tmp_path / "other")
    run = _run(home, tokens_from=str(home / "most"), tokenizer_from=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r'with tokenizer_sha256 = "[0-9a-f]{64}", not "[0-9a-f]{64}" as in'):
        train_quietly(run, tmp_path / "run")
    own = _run(home, cache_views=1)
    made = _task(own, tmp_path / "own")
    made.tokenizer_digest = "1" * 64
    with pytest.raises(ValueError, match="holds a token cache with tokenizer_sha256"):
        made.cache = None
        made.prepare(progress=False)


def test_tokens_of_another_schedule(home: Path, tmp_path: Path) -> None:
    config = json.loads((home / "given" / "config.json").read_text())
    shutil.copytree(home / "given", tmp_path / "other")
    config["schedule"]["sizes"][2] = [2, 3]
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    run = _run(home, tokens_from=str(home / "most"), tokenizer_from=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"was made with schedule = .*\[3, 3\].*, not .*\[2, 3\]"):
        train_quietly(run, tmp_path / "run")


def test_validation_images_of_other_classes_than_the_tokens(home: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "other", 4, (9, 9), num_classes=2)
    data = {"source": "", "validation": str(tmp_path / "other")}
    with pytest.raises(ValueError, match=r"has other classes .* than .*all .*: both must have the same ones"):
        train_quietly(_run(home, tokens_from=str(home / "all"), data=data), tmp_path / "run")


@pytest.mark.parametrize("way", ["all", "views"])
def test_damaged_tokens_stop_a_training_before_its_first_step(way: str, home: Path, tmp_path: Path) -> None:
    tokens = shutil.copytree(home / "all", tmp_path / "tokens")
    run, _ = _runs_from_tokens(home)[way]
    if way == "all":
        run = run.model_copy(update={"tokens_from": str(tokens)})
    else:
        train_quietly(run, tmp_path / "run")
        tokens = tmp_path / "run" / "tokens"
    content = bytearray((tokens / "tokens.npy").read_bytes())
    content[-1] ^= 1
    (tokens / "tokens.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokens\.npy was changed or damaged"):
        train_quietly(run, tmp_path / "run")
    assert way == "views" or not (tmp_path / "run" / "log.jsonl").exists()


def test_a_run_does_not_go_on_with_other_tokens(home: Path, tmp_path: Path) -> None:
    run, _ = _runs_from_tokens(home)["all"]
    tokens = shutil.copytree(home / "all", tmp_path / "tokens")
    run = run.model_copy(update={"tokens_from": str(tokens)})
    train_quietly(run, tmp_path / "run")
    steps = [record["step"] for record in read_log(tmp_path / "run" / "log.jsonl")]
    assert steps[-1] == STEPS
    shutil.rmtree(tokens)
    command = ["tokenize", str(home / "pictures"), "--model", str(home / "given"), *VIEWS, "--views", "2"]
    assert main([*command, "--out", str(tokens)]) == 0
    with pytest.raises(ValueError, match="holds a run with tokens_sha256"):
        train_quietly(run, tmp_path / "run")
