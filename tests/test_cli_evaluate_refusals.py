"""What ``evaluate`` and ``statistics`` refuse: exit code 2, one line, nothing written."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy
import pytest
from PIL import Image

from evaluation_for_tests import link_all, make_evaluation_home, outcome, save_npz
from models_for_tests import model_settings, picture, random_generator
from nextscale.cli import main
from nextscale.evaluate.statistics import read_statistics, write_reference

SAMPLES = "evaluate model --reference train.npz"
IMAGES = "evaluate a.npz --reference train.npz"
FROM_TEST = "--reference test --reference-kind validation"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad things."""
    home = make_evaluation_home(tmp_path_factory.mktemp("refusals"))
    save_npz(home / "a.npz", 4)
    save_npz(home / "one.npz", 1)
    numpy.savez(home / "floats.npz", numpy.zeros((3, 32, 32, 3)))
    numpy.savez(home / "pickled.npz", arr_0=numpy.array([{"a": print}], dtype=object))
    numpy.savez(home / "stats.npz", mu=numpy.zeros(4), sigma=numpy.zeros((4, 4)))
    numpy.savez(home / "labels.npz", numpy.zeros((3, 32, 32, 3), numpy.uint8), numpy.array([0, 1, 10]))
    numpy.savez(home / "small.npz", numpy.zeros((3, 16, 16, 3), numpy.uint8))
    (home / "cut.npz").write_bytes((home / "train.npz").read_bytes()[:-50])
    changed = bytearray((home / "train.npz").read_bytes())
    changed[len(changed) // 2] ^= 1
    (home / "changed.npz").write_bytes(changed)
    reference = read_statistics(home / "train.npz", kind=None)
    for name, update in (
        ("other.npz", {"features_digest": "0" * 64}), ("large.npz", {"image_size": (64, 64)}),
        ("deep.npz", {"features": "inception", "metric": "FID"}),
        ("letters.npz", {"class_names": ("a", "b")}), ("validation.npz", {"kind": "validation"}),
    ):  # fmt: skip
        record = reference.record.model_copy(update=update)
        write_reference(home / name, type(reference)(record, reference.moments, None, reference.kept_nD))
    for name, sizes in (
        ("mixed", ((32, 32), (32, 33))),
        ("letters", ((32, 32),) * 4),
        ("tiny", ((8, 8),) * 3),
    ):
        for index, size in enumerate(sizes):
            (home / name / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
            picture(index, size).save(home / name / "ab"[index % 2] / f"{index}.png")
    (home / "flat").mkdir()
    Image.new("RGB", (32, 32)).save(home / "flat" / "1.png")
    (home / "empty").mkdir()
    (home / "broken").mkdir()
    (home / "broken" / "half.png").write_bytes((home / "flat" / "1.png").read_bytes()[:60])
    shutil.copy(home / "flat" / "1.png", home / "broken" / "1.png")
    (home / "full").mkdir()
    (home / "full" / "notes.txt").write_text("mine")
    random_generator(model_settings(levels=4).model_copy(update={"class_names": tuple("abcdefghij")})).save(
        home / "foreign"
    )
    random_generator().save(home / "model8")
    (home / "bad.toml").write_text('features = "cifar"\nnum_clases = 10\n')
    (home / "no.toml").write_text("features = \n")
    return home


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    link_all(home, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        # the reference
        ("evaluate model --reference nowhere --reference-kind training", "nowhere does not exist"),
        ("evaluate model --reference nowhere.npz --reference-kind training", "nowhere.npz does not exist"),
        ("evaluate model --reference empty --reference-kind training", "empty holds no images"),
        ("evaluate model --reference train",
         "does not say whether the model was trained on it: give --reference-kind"),
        ("evaluate model --reference train --reference-kind test", "invalid choice: 'test'"),
        (f"evaluate model {FROM_TEST}",
         "test stands for validation images, but samples are scored against training"),
        ("evaluate model --reference validation.npz",
         "validation.npz stands for validation images, but samples are"),
        ("evaluate half --data test --reference train.npz",
         "but reconstructions are scored against validation"),
        (f"evaluate a.npz {FROM_TEST}", "but images are scored against training images"),
        (f"{SAMPLES} --any-reference",
         "--any-reference has no effect: samples are scored against training images any"),
        (f"{SAMPLES} --reference-kind validation",
         "train.npz holds statistics of training images, not of validation"),
        ("evaluate model --reference cut.npz", "cut.npz is not a readable .npz file"),
        ("evaluate model --reference changed.npz", "changed.npz"),
        ("evaluate model --reference other.npz",
         "train: statistics by other cifar weights (000000000000, not"),
        ("evaluate model --reference large.npz", "statistics of images of 64 x 64 pixels, not 32 x 32"),
        ("evaluate model --reference deep.npz", "no weights of inception given"),
        (f"{SAMPLES} --features inception", "no weights of inception given"),
        (f"{SAMPLES} --weights x.pth", "weights x.pth given, but cifar is the bundled classifier"),
        (f"{SAMPLES} --features resnet", "invalid choice: 'resnet'"),
        ("evaluate model --reference stats.npz", "stats.npz does not say whether it describes training"),
        ("evaluate model --reference stats.npz --reference-kind training", "mu is (4,): expected (2048,)"),
        ("evaluate model --reference floats.npz --reference-kind training", "floats.npz: arr_0 is float64"),
        ("evaluate model --reference pickled.npz --reference-kind training", "holds pickled objects"),
        ("evaluate model --reference small.npz --reference-kind training",
         "small.npz holds images of (16, 16) pixels"),
        ("evaluate model --reference one.npz --reference-kind training", "one.npz holds 1 images"),
        ("evaluate model --reference broken --reference-kind training",
         "image broken/half.png cannot be read"),
        ("evaluate model8 --reference train --reference-kind training",
         "images of 8 x 8 pixels: give --features"),
        ("evaluate model8 --reference train.npz",
         "--features cifar looks at images of 32 x 32 pixels, not of 8 x 8"),
        # what is scored
        ("evaluate nowhere --reference train.npz", "no model 'nowhere'"),
        ("evaluate cifar10-tinny --reference train.npz", "did you mean 'cifar10-tiny'"),
        ("evaluate half --reference train.npz", "holds a tokenizer but no prior"),
        ("evaluate empty --reference train.npz", "empty holds no images"),
        ("evaluate floats.npz --reference train.npz", "arr_0 is float64 (3, 32, 32, 3): expected uint8"),
        ("evaluate pickled.npz --reference train.npz", "holds pickled objects, which are never loaded"),
        ("evaluate mixed --reference train.npz", "images that are scored must have one size"),
        ("evaluate tiny --reference train.npz", "looks at images of 32 x 32 pixels, not of 8 x 8"),
        ("evaluate broken --reference train.npz", "image broken/half.png cannot be read"),
        ("evaluate one.npz --reference train.npz", "one.npz holds 1 images: give at least 2 to score"),
        ("evaluate flat --reference train.npz", "flat holds 1 images: give at least 2 to score"),
        (f"{IMAGES} --limit 2", "--limit has no effect on a.npz"),
        (f"{IMAGES} --guidance 2", "--guidance has no effect on images that are there already"),
        (f"{IMAGES} --dtype bfloat16", "--dtype has no effect on images that are there already"),
        (f"evaluate model --data test {FROM_TEST} --dtype auto", "--dtype has no effect on reconstructions"),
        ("evaluate model --dtype auto", "--dtype has no effect without --reference: give one"),
        (f"{IMAGES} --protocol cifar10", "--protocol has no effect on images"),
        (f"{IMAGES} --sweep guidance=1,2 --out s", "--sweep has no effect on images"),
        (f"{SAMPLES} --num-samples 1", "--num-samples 1: a reference needs at least 2"),
        (f"{SAMPLES} --num-samples 0", "--num-samples 0: a reference needs at least 2"),
        (f"{SAMPLES} --num-samples 4 --top-k 49", "top_k 49 is out of range"),
        (f"{SAMPLES} --limit 3", "--limit has no effect on samples"),
        (f"{SAMPLES} --lpips-weights v.pth", "--lpips-weights has no effect on samples"),
        (f"evaluate model --data test {FROM_TEST} --num-samples 5",
         "--num-samples has no effect with --data"),
        (f"evaluate model --data test {FROM_TEST} --seed 5", "--seed has no effect on reconstructions"),
        (f"evaluate half --data test {FROM_TEST} --lpips-weights v --lpips-heads h", "h is not a file"),
        (f"evaluate half --data test {FROM_TEST} --lpips-heads v", "--lpips-heads belong together"),
        (f"{SAMPLES} --batch 0", "--batch 0 must be at least 1"),
        (f"{SAMPLES} --resamples -1", "--resamples -1 must be at least 0"),
        (f"{SAMPLES} --resamples 1", "--resamples 1 gives no interval"),
        (f"{SAMPLES} --num-samples 4 --out full", "full exists and is no run of nextscale"),
        # agreement of classes
        ("evaluate letters --reference train.npz --class-agreement",
         "given 32 x 32 pixels of a, b: leave it out"),
        ("evaluate foreign --reference train.npz --class-agreement --num-samples 4",
         "pixels of a, b, c, d, e"),
        (f"{IMAGES} --class-agreement", "--class-agreement needs labels: the images have none"),
        ("evaluate labels.npz --reference train.npz --class-agreement", "labels 0..10: expected 0..9"),
        ("evaluate model --num-samples 4 --reference letters.npz --class-agreement",
         "the reference has other classes"),
        # protocols and sweeps
        (f"{SAMPLES} --protocol var-papr", "unknown protocol 'var-papr': expected one of cifar10, var-paper"),
        (f"{SAMPLES} --protocol var-papr", "did you mean var-paper?"),
        (f"{SAMPLES} --protocol bad.toml", "bad.toml: unknown key num_clases; did you mean num_classes?"),
        (f"{SAMPLES} --protocol no.toml", "no.toml is not valid TOML"),
        (f"{SAMPLES} --protocol var-paper", "is for 1000 classes, the model has 10"),
        (f"{SAMPLES} --protocol cifar10 --num-samples 500",
         "--num-samples 500 contradicts --protocol cifar10, which"),
        (f"{SAMPLES} --protocol cifar10 --guidance 2",
         "--guidance 2.0 contradicts --protocol cifar10, which leaves it"),
        (f"{SAMPLES} --protocol var-paper --guidance 2", "contradicts --protocol var-paper, which says 1.5"),
        (f"{SAMPLES} --protocol cifar10 --seed 1", "--seed 1 contradicts --protocol cifar10, which says 0"),
        (f"{SAMPLES} --protocol cifar10 --features inception",
         "--features inception contradicts --protocol cifar10"),
        (f"{SAMPLES} --protocol cifar10 --any-reference", "--any-reference contradicts --protocol cifar10"),
        (f"{SAMPLES} --protocol cifar10 --sweep guidance=1,2 --out s",
         "--sweep contradicts --protocol cifar10"),
        ("evaluate model --reference validation.npz --protocol cifar10",
         "but samples are scored against training"),
        (f"{SAMPLES} --sweep guidance=1,2", "--sweep needs --out"),
        (f"{SAMPLES} --sweep guidence=1,2 --out s", "unknown setting 'guidence'"),
        (f"{SAMPLES} --sweep top_p=0.5,1.5 --out s", "top_p 1.5 is out of range"),
        (f"{SAMPLES} --sweep guidance=1,2 --guidance 3 --out s", "--guidance contradicts --sweep guidance"),
        (f"evaluate model --data test {FROM_TEST} --sweep guidance=1,2 --out s",
         "give a model, and no --data"),
        # without a reference
        ("evaluate model --features cifar", "--features has no effect without --reference: give one"),
        ("evaluate model --sweep guidance=1,2", "--sweep has no effect without --reference"),
        ("evaluate half --class-agreement", "holds a tokenizer but no prior"),
        # statistics
        ("statistics train --out new.npz", "the following arguments are required: --kind"),
        ("statistics train --kind training --out train.npz", "train.npz must be a new .npz file"),
        ("statistics train --kind training --out new.json", "new.json must be a new .npz file"),
        ("statistics mixed --kind training --out new.npz", "has 32 x 33 pixels"),
        ("statistics tiny --kind training --out new.npz", "images of 8 x 8 pixels: give --features"),
        ("statistics tiny --kind training --features cifar --out new.npz",
         "looks at images of 32 x 32 pixels, not of 8"),
        ("statistics train --kind training --size 0 --out new.npz",
         "--size 0: expected a side, or height and width"),
        ("statistics train --kind training --size 1 2 3 --out new.npz", "--size 1 2 3: expected a side"),
        ("statistics flat --kind training --out new.npz",
         "flat holds 1 images: a reference needs at least 2"),
    ],
)  # fmt: skip
def test_refused(line: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.rglob("*"))
    code, out, err = outcome(line, capsys)
    lines = [text for text in err.splitlines() if not text.startswith("nextscale: warning: ")]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert lines[0].startswith("nextscale: ") and message in lines[0]
    assert sorted(here.rglob("*")) == before


def test_resizing_is_asked_for(here: Path) -> None:
    assert main(["statistics", "tiny", "--kind", "validation", "--size", "32", "--out", "new.npz"]) == 0
    record = read_statistics(here / "new.npz", kind="validation").record
    assert record.image_size == (32, 32) and "Lanczos" in record.preprocessing


def test_a_folder_of_other_settings(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"{SAMPLES} --num-samples 4 --resamples 0 --out out"
    assert main(shlex.split(line)) == 0
    for change, message in (
        ("--seed 1", "samples.first_seed = 0, not 1"),
        ("--guidance 2", "samples.sampling.guidance = 1.0, not 2.0"),
        ("--reference letters.npz", "out holds a run with"), ("--num-samples 5", "samples.count = 4, not 5"),
    ):  # fmt: skip
        capsys.readouterr()
        assert main(shlex.split(f"{line} {change}")) == 2
        assert message in capsys.readouterr().err
