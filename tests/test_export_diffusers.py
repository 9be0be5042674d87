"""A folder for diffusers: the real pipeline loader makes the images that `Generator` makes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from models_for_tests import model_settings, random_generator
from nextscale import Generator
from nextscale.cli import main


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its folder for diffusers."""
    home = tmp_path_factory.mktemp("diffusers")
    random_generator().save(home / "model")
    assert main(["export", str(home / "model"), "--to", "diffusers", "--out", str(home / "pipeline")]) == 0
    return home


def load(folder: Path, **how: Any) -> Any:
    """What diffusers makes of a folder; its complaints are errors."""
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as their_logging

    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    their_logging.add_handler(handler)
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            str(folder), trust_remote_code=True, low_cpu_mem_usage=False, **how
        )  # the default wants a package that is not needed
    finally:
        their_logging.remove_handler(handler)
    assert heard == []
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline(homes: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        modules = tmp_path_factory.mktemp("modules")  # where diffusers copies code to
        patch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(modules))
        yield load(homes / "pipeline", custom_pipeline=str(homes / "pipeline"))


def test_its_images_are_those_of_the_generator(homes: Path, pipeline: Any) -> None:
    expected = Generator.load(homes / "model")([3, "frog", None], seeds=[5, 6, 7], guidance=2.0, top_k=9)
    how: dict[str, Any] = {"seeds": [5, 6, 7], "guidance_scale": 2.0, "top_k": 9}
    output = pipeline([3, "frog", None], **how)
    assert type(output).__name__ == "ImagePipelineOutput"
    assert (numpy.stack([numpy.asarray(image) for image in output.images]) == expected.images).all()
    (arrays,) = pipeline([3, "frog", None], output_type="np", return_dict=False, **how)
    assert ((arrays * 255).round().astype(numpy.uint8) == expected.images).all()
    assert arrays.dtype == numpy.float32 and arrays.shape == expected.images.shape
    tensors = pipeline([3, "frog", None], output_type="pt", **how).images
    assert torch.equal(tensors, ((expected.images_BCHW + 1) / 2).clamp(0, 1))


def test_seeds_come_from_torch_generators(pipeline: Any) -> None:
    def images(generator: Any, labels: Any = (1, 1)) -> torch.Tensor:
        found: torch.Tensor = pipeline(labels, generator=generator, output_type="pt").images
        return found

    both = images(torch.Generator().manual_seed(1))
    assert torch.equal(both, images(torch.Generator().manual_seed(1))) and not torch.equal(both[0], both[1])
    assert not torch.equal(both, images(torch.Generator().manual_seed(2)))
    each = images([torch.Generator().manual_seed(seed) for seed in (2, 1)])
    assert torch.equal(each[1], both[0])
    assert len(images(None, "frog")) == 1


def test_refusals(pipeline: Any) -> None:
    for how, message in (
        ({"seeds": [0], "generator": torch.Generator()}, "give one of them"),
        ({"seeds": [0], "output_type": "jpg"}, "output_type 'jpg' is unknown: expected pil, np or pt"),
        ({"seeds": [0], "num_inference_steps": 5}, "num_steps would have no effect"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 images"),
        ({"seeds": [0], "top_q": 5}, "unknown sampling setting 'top_q'"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline(3, **how)


def test_it_needs_no_name_of_a_pipeline_and_moves(homes: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path))
    pipeline = load(homes / "pipeline", dtype=torch.bfloat16).to("cpu")
    assert (pipeline.dtype, pipeline.device) == (torch.bfloat16, torch.device("cpu"))
    mine = Generator.load(homes / "model", dtype="bfloat16")([1], seeds=[0]).images[0]
    assert (numpy.asarray(pipeline(1, seeds=[0]).images[0]) == mine).all()


def test_a_diffusion_model_and_one_without_prior(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "code"))
    model = random_generator(model_settings(prior={"kind": "diffusion"}))
    model.save("model")
    assert main(["export", "model", "--to", "diffusers", "--out", "pipeline"]) == 0
    images = load(tmp_path / "pipeline")([2], seeds=[4], num_inference_steps=3).images
    assert (numpy.asarray(images[0]) == model([2], seeds=[4], num_steps=3).images[0]).all()
    Generator(model.settings.model_copy(update={"prior": None}), model.tokenizer).save("half")
    capsys.readouterr()
    for line, message in (
        ("half --to diffusers --out new", "half holds a tokenizer but no prior"),
        ("model --to diffusers --batch 2 --out new", "--batch 2 has no effect on --to diffusers"),
        ("model --to diffusers --dtype bfloat16 --out new", "--dtype bfloat16 has no effect"),
    ):
        assert main(["export", *line.split()]) == 2
        assert message in capsys.readouterr().err
