"""The Inception network of FID against the outputs of another implementation, its layout, its resizing."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from inception_for_tests import golden_outputs, inception_layout, inception_state
from nextscale.features.extractor import load_extractor
from nextscale.features.inception import InceptionFID, load_inception, resize_as_tensorflow_1

STAGES = {"64": "Conv2d_2b_3x3", "192": "Conv2d_4a_3x3", "768": "Mixed_6e", "2048": "Mixed_7c"}


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    save_file(inception_state(), path)
    return path


@pytest.fixture(scope="module")
def network(weights_file: Path) -> InceptionFID:
    return load_inception(str(weights_file))


def deviation(given: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest absolute value."""
    assert given.shape == expected.shape
    return ((given - expected).abs().max() / expected.abs().max()).item()


def test_the_layout_is_the_published_one() -> None:
    with torch.device("meta"):
        network = InceptionFID()
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == inception_layout()


@pytest.mark.parametrize("case", ["px32", "px299"])
def test_the_outputs_are_those_of_the_other_implementation(case: str, network: InceptionFID) -> None:
    golden = {name.partition(".")[2]: v for name, v in golden_outputs().items() if name.startswith(case)}
    outputs = network(golden["images"])
    assert deviation(outputs["pool"], golden["2048"]) < 1e-5
    assert deviation(outputs["logits_unbiased"], golden["logits_unbiased"]) < 1e-5
    assert deviation(outputs["logits_unbiased"] + network.fc.bias, golden["logits"]) < 1e-5
    maps = dict(network.maps(golden["images"]))
    for name, stage in STAGES.items():
        assert deviation(maps[stage].mean(dim=(2, 3)), golden[name]) < 1e-5
    cells = maps["Mixed_6d"].permute(0, 2, 3, 1)[..., :7]  # the order in which TensorFlow flattens
    assert cells.shape == (2, 17, 17, 7)
    assert torch.equal(outputs["spatial"], cells.reshape(2, 2023))


def test_resizing_by_hand() -> None:
    """Pixel i of 4 lies at i / 2 of the image, the last one beyond its last pixel."""
    image = torch.tensor([[[[0.0, 8.0], [16.0, 32.0]]]])
    expected = [[0, 4, 8, 8], [8, 14, 20, 20], [16, 24, 32, 32], [16, 24, 32, 32]]
    assert resize_as_tensorflow_1(image, 4)[0, 0].tolist() == expected
    ramp = torch.arange(6.0).view(1, 1, 1, 6).expand(1, 1, 6, 6)
    assert resize_as_tensorflow_1(ramp, 3)[0, 0, 1].tolist() == [
        0,
        2,
        4,
    ]  # shrinking takes pixels as they are
    assert torch.equal(resize_as_tensorflow_1(ramp, 6), ramp)


def test_images_that_are_not_square() -> None:
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(8.0), indexing="ij")
    image = (10 * rows + columns)[None, None]
    found = resize_as_tensorflow_1(image, 8)[0, 0]
    assert found[:, 3].tolist() == [3, 8, 13, 18, 23, 28, 33, 33]
    assert found[2].tolist() == [10, 11, 12, 13, 14, 15, 16, 17]


def test_the_extractor(weights_file: Path, network: InceptionFID) -> None:
    extractor = load_extractor("inception", str(weights_file))
    assert (extractor.metric_name, extractor.dim, extractor.image_size) == ("FID", 2048, None)
    images = golden_outputs()["px32.images"]
    seen = extractor(images.permute(0, 2, 3, 1).numpy())
    assert {name: value.shape[1] for name, value in seen.items()} == {
        "pool": 2048, "spatial": 2023, "logits_unbiased": 1008,
    }  # fmt: skip
    assert deviation(seen["pool"], network(images)["pool"]) < 1e-5
    alone = extractor(numpy.ascontiguousarray(images.permute(0, 2, 3, 1).numpy()[1:]))
    assert deviation(alone["pool"], seen["pool"][1:]) < 1e-5


def test_other_files_are_refused(weights_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no weights of inception given"):
        load_extractor("inception")
    state = inception_state()
    short = {key: value for key, value in state.items() if key != "fc.weight"}
    save_file(short, tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match=r"fc.weight is missing"):
        load_inception(str(tmp_path / "short.safetensors"))
    misnamed = tmp_path / "pt_inception-2015-12-05-6726825d.safetensors"
    misnamed.write_bytes(weights_file.read_bytes())
    with pytest.raises(ValueError, match="its name promises a SHA-256 that starts with 6726825d"):
        load_extractor("inception", str(misnamed))
