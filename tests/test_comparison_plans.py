"""What a comparison computes and refuses before it trains, and how winners are named."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comparisons_for_tests import STUDY, toy_study, write_images
from models_for_tests import CLASSES, model_settings, random_generator
from nextscale import Generator
from nextscale.cli import main
from nextscale.config import build, merge
from nextscale.prior.cost import Cost
from nextscale.recipes import read_study
from nextscale.studies.families import count_tokenizer, looks, plan_families, steps_for
from nextscale.studies.page import write_page
from nextscale.studies.report import Row, Value, decided, share
from nextscale.studies.settings import ComparisonStudy
from nextscale.tokenizer.layers import AttentionBlock
from nextscale.tokenizer.model import Tokenizer


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "cifar", 40)


def test_steps_come_nearest_to_the_budget() -> None:
    of_prior = Cost(parameters=1, forward_flops=10, block_flops=8)  # 30 in training
    assert steps_for(30 * 4 * 100, of_prior, batch_size=4) == 100
    assert steps_for(30 * 4 * 100 + 59, of_prior, batch_size=4) == 100
    assert steps_for(30 * 4 * 100 + 61, of_prior, batch_size=4) == 101
    assert steps_for(1, of_prior, batch_size=4) == 1


def test_all_families_get_the_arithmetic_of_the_first(images: Path, tmp_path: Path) -> None:
    first, token, diffusion = plan_families(toy_study(images), tmp_path)
    assert first.prior.loop.num_steps == 8 and first.prior_flops == 3 * 2_274_560 * 4 * 8
    assert token.prior.loop.num_steps == round(8 * 2_274_560 / 1_705_984)
    assert diffusion.prior.loop.num_steps == round(8 * 2_274_560 / diffusion.cost.forward_flops)
    for plan in (token, diffusion):
        assert abs(plan.prior_flops - first.prior_flops) <= plan.cost.training_flops * 4 / 2
    assert first.tokenizer == diffusion.tokenizer and first.prior.tokenizer_from.endswith(
        "tokenizers/next_scale/model"
    )
    assert diffusion.prior.tokenizer_from == first.prior.tokenizer_from != token.prior.tokenizer_from
    assert (first.num_encodings, diffusion.num_encodings) == (36, diffusion.images)
    assert first.tokenizer_flops == 3 * (first.encode_flops + first.decode_flops) * 3 * 4


def test_one_validation_image_is_too_few(tmp_path: Path) -> None:
    images = write_images(tmp_path / "cifar", 10)
    with pytest.raises(ValueError, match=r"1 validation images: .*at least 2; give data.validation"):
        plan_families(toy_study(images), tmp_path)
    assert plan_families(toy_study(images, data={"source": str(images), "validation": str(images)}), tmp_path)


def test_products_of_a_tokenizer_are_counted() -> None:
    settings = model_settings()
    tokenizer = Tokenizer(settings.tokenizer, settings.schedule)
    counted = 0

    def count(module: nn.Module, _: Any, output_BCHW: Tensor) -> None:
        nonlocal counted
        dim, cells = output_BCHW.shape[1], output_BCHW.shape[2] * output_BCHW.shape[3]
        if isinstance(module, nn.Conv2d):
            counted += 2 * module.weight.numel() * cells
        else:  # queries by keys, and what they mix
            counted += 2 * 2 * cells * cells * dim

    for module in tokenizer.modules():
        if isinstance(module, (nn.Conv2d, AttentionBlock)):
            module.register_forward_hook(count)
    tokenizer.decode(torch.zeros(1, settings.schedule.num_tokens, dtype=torch.int64))
    of_decoding = counted
    tokenizer.encode(torch.zeros(1, 3, 8, 8))
    of_encoding = counted - of_decoding
    encode, decode = count_tokenizer(tokenizer)
    distances = 2 * settings.schedule.num_tokens * 48 * 6  # of every token to every code
    assert decode == of_decoding and encode == of_encoding + distances


def test_looks_lie_on_checkpoints_that_are_kept(images: Path, tmp_path: Path) -> None:
    for count in (1, 2, 3, 5):
        for plan in plan_families(toy_study(images, looks=count), tmp_path):
            loop, steps = plan.prior.loop, looks(plan, count)
            assert steps[-1] == loop.num_steps and len(steps) <= count
            assert all(step % loop.save_every == 0 for step in steps[:-1])
            assert loop.num_steps / loop.save_every <= loop.keep
    assert looks(plan_families(toy_study(images), tmp_path)[0], 2) == [4, 8]


def _tree() -> dict[str, Any]:
    tree: dict[str, Any] = tomllib.loads(STUDY)["compare"]
    return tree


def _family(number: int, **changes: Any) -> dict[str, Any]:
    """The toy study with changes of a family."""
    tree = _tree()
    tree["families"][number] = merge(tree["families"][number], changes)
    return tree


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (_family(0, name="diffusion"), "expected at least two, with different names"),
        (_family(0, name="../up"), "should match pattern"),
        (_family(1, samplings=[]), "expected at least one"),
        (_family(1, samplings=[{"name": "a", "candidate": False}]), "none is a candidate for the main table"),
        (_family(1, samplings=[{"name": "a", "num_steps": 3}]), "num_steps would have no effect"),
        (_family(1, samplings=[{"name": "a", "top_p": 2}]), "less than or equal to 1"),
        (_family(1, prior={"tokenizer_from": "x"}), "give either tokenizer or prior.tokenizer_from"),
        (_family(1, prior={"init": "cifar10-tiny"}), "have no place in a comparison"),
        (_family(1, prior={"data": {"source": "x"}}), "data.source of the study"),
        (_family(1, tokenizer={"data": {"source": "x"}}), "data.source of the study"),
        (_family(1, prior={"loop": {"patience": 1}}), "would end trainings early"),
        (_family(1, prior={"data": {"validation_share": 0.3}}), "hold out different shares"),
        (_family(2, prior={"prior": {"depht": 1}}), "unknown key families.2.prior.prior.depht"),
        (_tree() | {"timing_batches": [0]}, "timing_batches"),
        (_tree() | {"looks": 0}, "looks is 0"),
    ],
)
def test_settings_that_do_not_fit(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build(ComparisonStudy, tree, source="toys")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("toys: ")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (_family(1, prior={"prior": {"mlp_ratio": 5.0}}),
         r"numbers of parameters \(next_scale 86,610, next_token 94,994, diffusion 86,641\)"),
        (_family(1, prior={"prior": {"num_heads": 3}}), "family next_token: model_dim 64 is not divisible"),
        (_family(1, samplings=[{"name": "a", "top_k": 17}]), "top_k 17 exceeds"),
        (_family(1, tokenizer=None, prior={"tokenizer_from": "nowhere"}), "family next_token: no model"),
        (_tree() | {"data": {"source": "nowhere"}}, "nowhere"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(tree: dict[str, Any], message: str, images: Path, tmp_path: Path) -> None:
    tree = {"data": {"source": str(images)}} | tree
    with pytest.raises(ValueError, match=message):
        plan_families(build(ComparisonStudy, tree, source="toys"), tmp_path)


def test_images_of_different_sizes(images: Path, tmp_path: Path) -> None:
    tree = _family(1, tokenizer={"tokenizer": {"autoencoder": {"multipliers": [1, 1, 1]}}})
    tree |= {"data": {"source": str(images)}}
    with pytest.raises(ValueError, match="images of different sizes"):
        plan_families(build(ComparisonStudy, tree, source="toys"), tmp_path)


def test_a_given_tokenizer_costs_nobody_knows_what(images: Path, tmp_path: Path) -> None:
    base = random_generator(model_settings(sizes=((1, 1), (2, 2), (4, 4)), levels=4))
    settings = base.settings.model_copy(update={"prior": None})
    Generator(settings, base.tokenizer).save(tmp_path / "given")
    tree = _family(0, tokenizer=None, prior={"tokenizer_from": str(tmp_path / "given")})
    tree |= {"data": {"source": str(images)}}
    tree["families"][1:] = [merge(tree["families"][0], {"name": "again"})]
    first, again = plan_families(build(ComparisonStudy, tree, source="toys"), tmp_path)
    assert first.tokenizer_flops is None and first.encode_flops > 0
    assert first.prior_flops == again.prior_flops


def test_unequal_priors_are_refused_on_the_command_line(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("toys.toml").write_text(STUDY.replace("mlp_ratio = 1.67", "mlp_ratio = 4.0"))
    assert main(["compare", "toys.toml", "--data.source", str(images)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "diffusion 105,862" in err
    assert [item.name for item in tmp_path.iterdir()] == ["toys.toml"]
    assert main(["compare", "toys.toml", "--families.prior.init", "x"]) == 2
    assert "unknown setting --families.prior.init" in capsys.readouterr().err


def _row(better: str, **values: tuple[float | None, ...]) -> Row:
    return Row("row", "meaning", {name: Value(*value) for name, value in values.items()}, better)


@pytest.mark.parametrize(
    ("row", "winner"),
    [
        (_row("less", a=(2.0,), b=(1.0,), c=(3.0,)), "b (?)"),
        (_row("more", a=(2.0,), b=(1.0,), c=(3.0,)), "c (?)"),
        (_row("less", a=(2.0, 1.5, 2.5), b=(3.0, 2.6, 3.4), c=(9.0, 8.0, 10.0)), "a"),
        (_row("less", a=(2.0, 1.5, 2.6), b=(3.0, 2.6, 3.4), c=(9.0, 8.0, 10.0)),
         "not clear (a, intervals overlap)"),
        (_row("more", a=(0.5,), b=(0.5,)), "equal"),
        (_row("more", a=(0.5,), b=(None,)), ""),
        (_row("", a=(0.5,), b=(0.7,)), ""),
    ],
)  # fmt: skip
def test_winners(row: Row, winner: str) -> None:
    assert decided(row, doubt=" (?)").winner == winner


def test_the_interval_of_a_share() -> None:
    value = share(0.5, 100)
    assert (value.low, value.high) == pytest.approx((0.402, 0.598))
    assert share(0.0, 10) == Value(0.0, 0.0, 0.0) and share(0.99, 10).high == 1.0


def test_names_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    cell = {"value": None, "low": None, "high": None}
    row = {"name": "<em>", "meaning": "m", "values": {"a": cell}, "better": "less", "winner": "<i>"}
    page = write_page(
        {
            "families": ["a"], "metric": "FD", "warnings": ["<script>"], "rows": [row], "samplings": [],
            "settings": {"few_samples": 1, "timing_batches": [1]}, "command": "a < b", "versions": {},
            "times": {"setting": {"device": "cpu", "threads": 1, "machine": "m"}}, "features_digest": "d",
            "reference": {"count": 1, "kind": "training", "source": "s", "features": "f",
                          "preprocessing": "p"},
        },
        samples={"a": tmp_path / "a.png"}, plots={"compute": tmp_path / "a.png", "time": tmp_path / "a.png"},
        class_names=("<u>",),
    )  # fmt: skip
    assert "not known" in page and "a &lt; b" in page
    assert not any(mark in page for mark in ("<em>", "<i>", "<u>", "<script>"))
    assert "&lt;em&gt;" in page and "&lt;u&gt;" in page


def test_the_recipe_gives_all_families_the_same(tmp_path: Path) -> None:
    write_images(tmp_path / "cifar", 100)
    tree = read_study("cifar10-study", "compare") | {"data": {"source": str(tmp_path / "cifar")}}
    study = build(ComparisonStudy, tree, source="cifar10-study")
    plans = plan_families(study, tmp_path)
    assert [plan.family.prior.prior.kind for plan in plans] == ["next_scale", "next_token", "diffusion"]
    assert study.num_samples == 10_000 and study.timing_batches == (1, 8, 64)
    for plan in plans:
        assert plan.prior_flops == pytest.approx(plans[0].prior_flops, rel=1e-3)
        assert plan.model.class_names == tuple(sorted(CLASSES)) and plan.image_size == (32, 32)
    trained = {plan.prior.tokenizer_from: plan.tokenizer_flops for plan in plans}
    assert len(trained) == 2, "next-scale and diffusion share one"
    assert None not in trained.values(), "a tokenizer of unknown training would not be alike"
    own, plain = (plan.tokenizer for plan in plans[:2])
    assert own is not None and plain is not None and plans[2].tokenizer == own
    same = {"schedule": own.schedule, "tokenizer": own.tokenizer}
    assert plain.model_copy(update=same) == own, "trained alike, but for the scales"
    assert plans[0].family.samplings[3].given == {"guidance": 0.0}
    assert all(way.num_steps == 50 for way in plans[2].family.samplings if way.candidate)
    total = sum(plan.prior_flops for plan in plans) + sum(value or 0 for value in trained.values())
    assert total == pytest.approx(6e14, rel=0.02)
    ddpm = plans[2].family.samplings[-1]
    assert (ddpm.sampler, ddpm.num_steps) == ("ddpm", 250)
