"""Recipes: each stage builds, sizes are the published ones, and what the comments say is computed here."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path

import pytest
import torch

from golden_weights import published_layouts
from nextscale import recipes
from nextscale.config import build
from nextscale.data.loader import NUM_TRANSFORM_UNIFORMS, NUM_UNIFORMS
from nextscale.features.classifier import Classifier
from nextscale.generate.folder import build_prior
from nextscale.generate.settings import ModelSettings
from nextscale.prior.cost import Cost, cost
from nextscale.recipes import STAGES, STUDIES, read_recipe, recipe_names
from nextscale.scales import PRESETS
from nextscale.tokenizer.model import Tokenizer
from nextscale.train.schedules import learning_rate
from nextscale.train.settings import AnyRun, DecoderRun, PriorRun, TokenizerRun

HOME = Path(recipes.__file__).parent
ALL = [
    (name, stage)
    for name in recipe_names()
    for stage in tomllib.loads((HOME / f"{name}.toml").read_text())
    if stage not in STUDIES
]
IMAGENET = [
    name for name in recipe_names() if name.startswith("imagenet256") or name.startswith("imagenet512")
]
# entries of the published files that are not trained
BUFFERS = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias", "ema_vocab_hit_SV")


def _run(name: str, stage: str) -> AnyRun:
    return build(STAGES[stage], read_recipe(name, stage), source=name)


def _tokenizer(name: str) -> TokenizerRun:
    """Of a recipe, or of the bundled model that it takes the tokenizer from."""
    if "tokenizer" not in tomllib.loads((HOME / f"{name}.toml").read_text()):
        name = read_recipe(name, "prior")["tokenizer_from"]
    run = _run(name, "tokenizer")
    assert isinstance(run, TokenizerRun)
    return run


def _model(name: str) -> ModelSettings:
    """What the two stages of a recipe make together."""
    tokenizer, prior = _tokenizer(name), _run(name, "prior")
    assert isinstance(prior, PriorRun)
    return ModelSettings(
        schedule=tokenizer.schedule, tokenizer=tokenizer.tokenizer, prior=prior.prior,
        sampling=prior.sampling, class_names=tuple(str(number) for number in range(1000)),
    )  # fmt: skip


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _published_count(file: str) -> int:
    shapes = published_layouts()[file]
    return sum(math.prod(shape) for key, shape in shapes.items() if not key.endswith(BUFFERS))


def test_there_are_recipes() -> None:
    assert {"cifar10-tiny", "imagenette64", "imagenet256-d16", "imagenet512-d36"} <= set(recipe_names())
    assert len(ALL) >= 15 and {stage for _, stage in ALL} == set(STAGES)


@pytest.mark.parametrize(("name", "stage"), ALL)
def test_every_stage_builds(name: str, stage: str) -> None:
    run = _run(name, stage)
    with torch.device("meta"):
        if isinstance(run, TokenizerRun):
            tokenizer = Tokenizer(run.tokenizer, run.schedule)
            side = 32 if name.startswith("cifar10") else 64 if name == "imagenette64" else int(name[8:11])
            assert tokenizer.image_size == (side, side)
            assert {*tokenizer.quantizer.phi_of_scale} == {*range(len(tokenizer.quantizer.phis))}
        elif isinstance(run, PriorRun):
            assert _count(build_prior(_model(name))) > 1e6
            assert run.sampling.top_k <= _tokenizer(name).tokenizer.quantizer.vocab_size
            # two numbers per block for stochastic depth, and one for the class
            assert 2 * run.prior.depth + 1 <= NUM_UNIFORMS - NUM_TRANSFORM_UNIFORMS
        elif isinstance(run, DecoderRun):  # it works on what the other two stages make
            assert {"tokenizer", "prior"} <= {stage for other, stage in ALL if other == name}
            assert run.drawn_scales <= _tokenizer(name).schedule.num_scales
        else:
            classifier = run.classifier.model_copy(update={"class_names": ("a", "b")})
            assert _count(Classifier(classifier)) > 1e5


@pytest.mark.parametrize(("name", "stage"), ALL)
def test_the_learning_rate_rises_and_falls(name: str, stage: str) -> None:
    run = _run(name, stage)
    loop, settings = run.loop, run.optimizer
    rates = [
        learning_rate(settings, step, num_steps=loop.num_steps, batch_size=loop.batch_size)
        for step in range(0, loop.num_steps, max(1, loop.num_steps // 200))
    ]
    peak = settings.base_lr * loop.batch_size / 256
    assert max(rates) == pytest.approx(peak, rel=0.05) and peak <= 1e-2
    assert rates[0] < 0.3 * peak and rates[-1] < 0.5 * peak
    assert 0 < rates.index(max(rates)) < 60


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_recipes_have_the_published_sizes(name: str) -> None:
    size, depth = int(name[8:11]), int(name.rsplit("-d", 1)[1])
    settings = _model(name)
    assert settings.schedule == PRESETS[size]
    with torch.device("meta"):
        tokenizer, prior = Tokenizer(settings.tokenizer, settings.schedule), build_prior(settings)
    assert settings.prior is not None and settings.prior.depth == depth
    assert _count(prior) == _published_count(f"var_d{depth}.pth")
    assert _count(tokenizer) == _published_count("vae_ch160v4096z32.pth")


@pytest.mark.parametrize("name", IMAGENET)
def test_steps_are_the_epochs_of_the_first_line(name: str) -> None:
    text = (HOME / f"{name}.toml").read_text()
    found = re.search(r"VAR-d(\d+)(?:-s)?: (\d+) epochs of 1,281,167 images at batch (\d+)\.", text)
    assert found is not None
    depth, epochs, batch = (int(number) for number in found.groups())
    run = _run(name, "prior")
    assert isinstance(run, PriorRun)
    assert (run.prior.depth, run.loop.batch_size) == (depth, batch)
    assert run.loop.num_steps == pytest.approx(epochs * 1_281_167 / batch, abs=1)


@pytest.mark.parametrize("name", ["cifar10-tiny", "imagenette64"])
def test_the_first_line_of_a_small_recipe(name: str) -> None:
    run, text = _tokenizer(name), (HOME / f"{name}.toml").read_text()
    found = re.search(r"# (\d+) px .*tokenizer f(\d+), (\d+) scales up to (\d+)x\4 \((\d+) tokens\b", text)
    assert found is not None
    side, reduction, scales, last, tokens = (int(number) for number in found.groups())
    assert run.tokenizer.autoencoder.reduction == reduction
    assert (run.schedule.num_scales, run.schedule.num_tokens) == (scales, tokens)
    assert run.schedule.latent_size == (last, last) and side == last * reduction


def _cost(name: str, vocab_size: int | None = None) -> Cost:
    model = _model(name)
    assert model.prior is not None
    quantizer = model.tokenizer.quantizer
    return cost(
        model.prior, model.schedule, vocab_size=vocab_size or quantizer.vocab_size,
        code_dim=quantizer.code_dim, num_classes=10,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["cifar10-next-token", "cifar10-diffusion"])
def test_the_rivals_of_cifar10_tiny_have_its_weights_and_its_arithmetic(name: str) -> None:
    own, given = _run(name, "prior"), _run("cifar10-tiny", "prior")
    assert _tokenizer(name).tokenizer.autoencoder == _tokenizer("cifar10-tiny").tokenizer.autoencoder
    cheap, dear = _cost(name), _cost("cifar10-tiny")
    assert cheap.parameters == pytest.approx(_cost("cifar10-tiny", 1024).parameters, rel=0.02)
    whole = [run.loop.num_steps * run.loop.batch_size * each.training_flops
             for run, each in ((own, cheap), (given, dear))]  # fmt: skip
    assert whole[0] == pytest.approx(whole[1], rel=0.03)
    text = (HOME / f"{name}.toml").read_text()
    found = re.search(r"training: ([\d.]+) GFLOPs an image where cifar10-tiny takes ([\d.]+)", text)
    assert found is not None
    assert [each.training_flops / 1e9 for each in (cheap, dear)] == pytest.approx(
        [float(number) for number in found.groups()], abs=0.005
    )


@pytest.mark.parametrize(("name", "stage"), ALL)
def test_peaks_that_comments_speak_of(name: str, stage: str) -> None:
    table = (HOME / f"{name}.toml").read_text().split(f"[{stage}.optimizer]")[1].split("\n[")[0]
    run = _run(name, stage)
    for batch, peak in re.findall(r"at batch (\d+) the peak is ([\d.e-]+)", table):
        assert run.loop.batch_size == int(batch)
        assert run.optimizer.base_lr * int(batch) / 256 == pytest.approx(float(peak))


def test_recipes_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[prior.prior]\ndepth = 3\n")
    assert read_recipe(str(file), "prior") == {"prior": {"depth": 3}}
    with pytest.raises(ValueError, match="has no stage 'tokenizer': it has prior"):
        read_recipe(str(file), "tokenizer")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[prior\n", "mine.toml is not valid TOML"),
        ("prior = 3\n", r"mine.toml: prior is 3: expected a table \[prior\]"),
        ("", "has no stage 'prior'"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_recipe(str(file), "prior")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("cifar10-tini", "unknown recipe 'cifar10-tini': expected one of .*; did you mean cifar10-tiny"),
        ("nowhere.toml", "unknown recipe 'nowhere.toml': expected one of .*, or a .toml file"),
        ("../recipes/cifar10", "unknown recipe"),
    ],
)
def test_unknown_recipes(recipe: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_recipe(recipe, "prior")
