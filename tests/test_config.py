"""Settings from trees and command lines: values, unknown keys, the nearest match."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, Field

from nextscale.config import build, merge, nearest, parse_overrides, setting_paths, setting_values
from nextscale.generate.settings import SamplingSettings
from nextscale.recipes import STAGES
from nextscale.train.settings import ClassifierRun, DecoderRun, PriorRun, TokenizerRun

TREE: dict[str, Any] = {"prior": {"depth": 3}}


def _parsed(line: str, model: type[BaseModel] = PriorRun) -> Any:
    return parse_overrides(line.split(), model)


def test_values_are_text_lists_or_json_words() -> None:
    assert _parsed("--loop.batch_size 8 --data.flip true --prior.drop_path=null") == {
        "loop": {"batch_size": "8"}, "data": {"flip": True}, "prior": {"drop_path": None},
    }  # fmt: skip
    assert _parsed("--schedule.sizes [[1,1],[2,3]]", TokenizerRun) == {
        "schedule": {"sizes": [[1, 1], [2, 3]]}
    }
    assert _parsed("--data.source=a=b --tokenizer-from x") == {
        "data": {"source": "a=b"},
        "tokenizer_from": "x",
    }
    assert parse_overrides(["--data.source", "my pictures"], PriorRun) == {"data": {"source": "my pictures"}}
    assert _parsed("--optimizer.base_lr -1") == {"optimizer": {"base_lr": "-1"}}
    assert _parsed("") == {}


def test_the_last_of_two_wins() -> None:
    assert _parsed("--loop.seed 1 --loop.seed 2") == {"loop": {"seed": "2"}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--loop.bach_size 8", "unknown setting --loop.bach_size; did you mean --loop.batch_size?"),
        ("--batch_size 8", "unknown setting --batch_size; did you mean --loop.batch_size?"),
        ("--transformer.depth 3", "unknown setting --transformer.depth; did you mean --prior.depth?"),
        ("--loop 3", "unknown setting --loop"),
        ("--qqqqqq 3", "unknown setting --qqqqqq$"),
        ("--loop.seed", "--loop.seed needs a value: --loop.seed VALUE"),
        ("--loop.seed --data.flip true", "--loop.seed needs a value"),
        ("8", "unexpected '8': settings are given as --name VALUE"),
        ("--data.flip true false", "unexpected 'false'"),
        ("--optimizer.betas [0.9,", r"--optimizer.betas is given as '\[0.9,': not a list"),
    ],
)
def test_overrides_that_are_none(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _parsed(line)


def test_merging_changes_neither_tree() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    changes = {"a": {"b": 5}, "e": {"f": 6}, "d": {"g": 7}}
    assert merge(base, changes) == {"a": {"b": 5, "c": 2}, "d": {"g": 7}, "e": {"f": 6}}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3} and changes["a"] == {"b": 5}


def test_building_converts_text() -> None:
    text = {"loop": {"batch_size": "8", "precision": "float32"}, "optimizer": {"base_lr": "1e-3"}}
    run = build(PriorRun, merge(TREE, text), source="here")
    assert (run.loop.batch_size, run.optimizer.base_lr, run.prior.depth) == (8, 1e-3, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loop": {"num_steps": "ten"}}, "here: loop.num_steps is 'ten': .*integer"),
        ({"loop": {"num_steps": 0}}, "here: loop.num_steps is 0: .*greater than or equal to 1"),
        ({"loop": {"num_stepz": 5}}, "here: unknown key loop.num_stepz; did you mean loop.num_steps?"),
        ({"lop": {}}, "here: unknown key lop; did you mean loop?"),
        ({"loop": {"precision": "half"}}, "here: loop.precision is 'half': .*'float32' or 'bfloat16'"),
        (
            {"prior": {"kind": "gan"}},
            "here: prior is {.*'gan'.*}: its kind is unknown: expected next_scale, ",
        ),
        ({"data": {"flip": "perhaps"}}, "here: data.flip is 'perhaps'"),
        ({"sampling": {"top_p": 0}}, "here: sampling.top_p is 0"),
        ({"prior": None}, "here: prior is None"),
    ],
)
def test_building_names_what_is_wrong_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build(PriorRun, merge(TREE, changes), source="here")
    assert "\n" not in str(caught.value)


def test_building_names_what_is_missing_and_what_a_class_itself_refuses() -> None:
    with pytest.raises(ValueError, match=r"here: prior is missing$"):
        build(PriorRun, {}, source="here")
    with pytest.raises(ValueError, match=r"here: unknown key priorr; did you mean prior\?$"):
        build(PriorRun, {"priorr": {"depth": 3}}, source="here")
    tree = {"schedule": {"sizes": [[3, 3], [2, 2]]}, "tokenizer": {}}
    with pytest.raises(ValueError, match=r"here: schedule.sizes: scale \(3, 3\) does not fit: each side"):
        build(TokenizerRun, tree, source="here")
    tree = {"schedule": {"sizes": [[1, 1]]}, "tokenizer": {"autoencoder": {"base_dim": 7}}}
    with pytest.raises(ValueError, match=r"here: tokenizer.autoencoder: base_dim 7 x multiplier"):
        build(TokenizerRun, tree, source="here")


def test_the_nearest_word() -> None:
    assert nearest("fog", ["dog", "frog", "cat"]) == "; did you mean frog?"
    assert nearest("zzz", ["dog"]) == ""
    assert nearest("far_away.depth", ["prior.depth"], "--") == "; did you mean --prior.depth?"


@pytest.mark.parametrize("model", [TokenizerRun, PriorRun, DecoderRun, ClassifierRun])
def test_every_setting_is_described_and_frozen(model: type[BaseModel]) -> None:
    paths = list(setting_paths(model))
    assert len({path for path, _ in paths}) == len(paths) > 20
    assert [path for path, text in paths if not text] in ([], ["prior.kind"])
    assert model.model_config["frozen"] and model.model_config["extra"] == "forbid"


def test_every_setting_can_be_given_on_a_command_line() -> None:
    for model in STAGES.values():
        for path, _ in setting_paths(model):
            tree = parse_overrides([f"--{path}", "1"], model)
            for name in path.split("."):
                tree = tree[name]
            assert tree == "1"


@pytest.mark.parametrize(
    "wrong",
    [{"guidance": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}, {"temperature": 0}, {"topk": 3}],
    ids=str,
)
def test_sampling_settings_have_ranges(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingSettings(**wrong)


def test_a_choice_between_settings_offers_the_paths_of_all_and_lists_those_of_the_chosen() -> None:
    class One(BaseModel):
        kind: str = Field("one", description="which")
        size: int = 1

    class Other(BaseModel):
        kind: str = Field("other", description="which of the two")
        speed: int = 2

    class Whole(BaseModel):
        part: One | Other | None = None
        limit: int | None = None

    assert dict(setting_paths(Whole)) == {
        "part.kind": "which of the two", "part.size": "", "part.speed": "", "limit": "",
    }  # fmt: skip
    assert list(setting_values(Whole(part=Other()))) == [
        ("part.kind", "other", "which of the two"), ("part.speed", 2, ""), ("limit", None, ""),
    ]  # fmt: skip
    assert list(setting_values(Whole())) == [("part", None, ""), ("limit", None, "")]
