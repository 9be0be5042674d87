"""The numbers of the original implementation, from weights in the published layout and from files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from golden_weights import CASES, config, golden, golden_edit, states, wrapped
from nextscale.convert import convert_files, from_released
from nextscale.generate.generator import Generator

#: Published name of the gradient -> ours.
GRADIENTS = {
    "blocks.0.attn.mat_qkv.weight": "blocks.0.attention.qkv.weight",
    "head.weight": "head.weight",
    "pos_start": "start_position",
    "word_embed.weight": "input_projection.weight",
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def generator(case: str) -> Generator:
    return from_released(*states(case))


def deviation(given: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest absolute value."""
    assert given.shape == expected.shape
    return ((given.detach() - expected).abs().max() / expected.abs().max()).item()


def scales(case: str, name: str) -> list[Tensor]:
    return [golden(case)[f"{name}.{scale}"] for scale in range(len(config(case)["patch_nums"]))]


def tokens(case: str, name: str = "tokens") -> Tensor:
    return torch.cat(scales(case, name), dim=1)


def sample(generator: Generator, case: str) -> tuple[Tensor, Tensor]:
    """Greedy tokens and the image in [0, 1]."""
    labels = golden(case)["labels"].tolist()
    seeds = list(range(len(labels)))
    result = generator(labels=labels, seeds=seeds, guidance=config(case)["cfg"], top_k=1, top_p=1.0)
    assert result.tokens_BL is not None
    return result.tokens_BL, (result.images_BCHW + 1) / 2


def test_features(generator: Generator, case: str) -> None:
    assert deviation(generator.tokenizer.features(golden(case)["image"]), golden(case)["features"]) < 1e-4


def test_tokens_of_an_image(generator: Generator, case: str) -> None:
    parts = generator.tokenizer.schedule.split(generator.tokenizer.encode(golden(case)["image"]))
    for given, expected in zip(parts, scales(case, "tokens"), strict=True):
        assert torch.equal(given, expected)


def test_accumulated_map_after_each_scale(generator: Generator, case: str) -> None:
    maps = generator.tokenizer.quantizer.maps(tokens(case))
    for given, expected in zip(maps, scales(case, "fhat"), strict=True):
        assert deviation(given, expected) < 1e-4


def test_reconstruction(generator: Generator, case: str) -> None:
    image = golden(case)["image"]
    recon = generator.tokenizer.decode(generator.tokenizer.encode(image))
    assert deviation(recon, golden(case)["recon"]) < 1e-4
    trained_with, quantized = generator.tokenizer(image)  # the path of training, before clamping
    assert deviation(trained_with.clamp(-1, 1), golden(case)["recon"]) < 1e-4
    assert torch.equal(quantized.tokens_BL, tokens(case))


def test_teacher_inputs(generator: Generator, case: str) -> None:
    inputs = generator.tokenizer.teacher_inputs(tokens(case))
    assert deviation(inputs, golden(case)["teacher_input"]) < 1e-4


def test_logits_loss_and_gradients(case: str) -> None:
    prior = from_released(*states(case)).prior.requires_grad_()
    logits = prior(golden(case)["labels"], golden(case)["teacher_input"])
    assert deviation(logits, golden(case)["logits"]) < 1e-4
    loss = F.cross_entropy(logits.flatten(0, 1), tokens(case).flatten())
    assert deviation(loss[None], golden(case)["loss"]) < 1e-4
    loss.backward()
    gradients = {name: value.grad for name, value in prior.named_parameters()}
    assert all(value is not None for value in gradients.values())
    for released, ours in GRADIENTS.items():
        expected = golden(case)[f"grad.{released}"]
        assert deviation(gradients[ours].reshape(expected.shape), expected) < 1e-3
    norm = torch.stack([value.norm() for value in gradients.values()]).norm()
    assert deviation(norm[None], golden(case)["grad_norm"]) < 1e-3


def test_greedy_sample(generator: Generator, case: str) -> None:
    tokens_BL, images = sample(generator, case)
    parts = generator.settings.schedule.split(tokens_BL)
    for given, expected in zip(parts, scales(case, "sample_tokens"), strict=True):
        assert torch.equal(given, expected)
    assert deviation(images, golden(case)["sample_image"]) < 1e-4


@pytest.mark.parametrize("kind", ["inpaint", "edit"])
def test_an_edit(generator: Generator, case: str, kind: str) -> None:
    expected, num_classes = golden_edit(case), len(generator.class_names)
    labels = [None if label == num_classes else label for label in expected[f"{kind}.labels"].tolist()]
    assert (labels[0] is None) == (kind == "inpaint")
    result = generator.edit(
        golden(case)["image"], mask=expected["mask"], labels=labels, seeds=range(len(labels)), task="replace",
        guidance=3.0, top_k=1, top_p=1.0, paste=False,
    )  # fmt: skip
    assert result.tokens_BL is not None
    parts = generator.settings.schedule.split(result.tokens_BL)
    for scale, side in enumerate(config(case)["patch_nums"]):
        share = F.interpolate(expected["mask"][None, None], size=(side, side), mode="bilinear")
        kept = (share > 0.5).flatten() if side > 1 else torch.tensor([True])
        drawn = expected[f"{kind}.tokens.{scale}"]
        assert torch.equal(parts[scale], torch.where(kept, golden(case)[f"tokens.{scale}"], drawn))
    assert deviation((result.images_BCHW + 1) / 2, expected[f"{kind}.image"]) < 1e-4


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", ["plain", "trainer", "trainer and plain"])
def test_published_files(tmp_path: Path, case: str, kind: str, zipped: bool) -> None:
    tokenizer, prior = states(case)
    paths = tmp_path / "vae.pth", tmp_path / "var.pth"
    trainer = wrapped(tokenizer, prior)
    kinds = {"plain": (tokenizer, prior), "trainer": (trainer,), "trainer and plain": (trainer, prior)}
    contents = kinds[kind]
    for path, content in zip(paths, contents, strict=False):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    prior_path = paths[len(contents) - 1]
    written = convert_files(paths[0], prior=prior_path, out=tmp_path / "model")
    loaded = Generator.load(tmp_path / "model")
    for pair in ((written.tokenizer, loaded.tokenizer), (written.prior, loaded.prior)):
        assert all(torch.equal(a, b) for a, b in zip(*(module.parameters() for module in pair), strict=True))
    image, labels = golden(case)["image"], golden(case)["labels"]
    tokens_BL = loaded.tokenizer.encode(image)
    assert torch.equal(tokens_BL, tokens(case))
    assert deviation(loaded.tokenizer.decode(tokens_BL), golden(case)["recon"]) < 1e-4
    logits = loaded.prior(labels, loaded.tokenizer.teacher_inputs(tokens_BL))
    assert deviation(logits, golden(case)["logits"]) < 1e-4
    sampled_BL, images = sample(loaded, case)
    assert torch.equal(sampled_BL, tokens(case, "sample_tokens"))
    assert deviation(images, golden(case)["sample_image"]) < 1e-4


def test_the_tolerances_notice_a_wrong_weight(case: str) -> None:
    tokenizer, prior = states(case)
    prior["blocks.0.attn.q_bias"] = prior["blocks.0.attn.q_bias"] * 1.1
    tokenizer["quantize.quant_resi.qresi_ls.0.bias"] = tokenizer["quantize.quant_resi.qresi_ls.0.bias"] * 1.1
    changed = from_released(tokenizer, prior)
    logits = changed.prior(golden(case)["labels"], golden(case)["teacher_input"])
    assert deviation(logits, golden(case)["logits"]) > 1e-4
    inputs = changed.tokenizer.teacher_inputs(tokens(case))
    assert deviation(inputs, golden(case)["teacher_input"]) > 1e-4
