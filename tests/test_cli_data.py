"""``nextscale data check``: what it finds, prints, writes and returns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from images import encoded, noise, write_tar
from nextscale.cli import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _save(name: str, content: bytes) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content)


def _good() -> None:
    _save("good/cat/0.png", encoded(noise(0, (40, 30))))
    _save("good/cat/1.jpg", encoded(noise(1, (200, 300)).convert("L"), "JPEG"))
    _save("good/dog/2.png", encoded(noise(2, (64, 64)).convert("RGBA")))


def _report(*words: str) -> dict[str, Any]:
    assert main(["data", "check", *words, "--out", "found"]) in (0, 1)
    report: dict[str, Any] = json.loads(Path("found/report.json").read_text())
    return report


def test_a_good_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _good()
    assert main(["data", "check", "good"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.splitlines() == [
        "3 images of 2 classes, 0 unreadable",
        "  cat: 2",
        "  dog: 1",
        "images per class: 1 to 2",
        "width: 40 to 200, median 64",
        "height: 30 to 300, median 64",
        "short side: 30 to 200, median 64",
        "images whose short side is below 32: 1, 64: 1, 128: 2, 256: 3, 512: 3",
        "modes: RGB 1, L 1, RGBA 1",
        "formats: PNG 2, JPEG 1",
        "exact duplicates: 0 groups, 0 of them under different labels",
    ]
    assert sorted(item.name for item in here.iterdir()) == ["good"]


def test_what_it_writes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _good()
    report = _report("good")
    assert "report: found/report.json   pictures: found/sheet.png" in capsys.readouterr().out
    assert report["classes"] == {"cat": 2, "dog": 1} and report["images"] == report["readable"] == 3
    assert report["width"] == {"min": 40, "median": 64, "max": 200}
    assert report["modes"] == {"RGB": 1, "L": 1, "RGBA": 1} and report["unreadable"] == []
    with Image.open("found/sheet.png") as sheet:
        assert sheet.size == (4 * 98 + 2, 2 * (14 + 100))
        assert sheet.getpixel((50, 14 + 50)) != (255, 255, 255)  # the first cat
        assert sheet.getpixel((150, 114 + 14 + 50)) == (255, 255, 255)  # there is one dog
    _report("good")  # what an earlier check wrote is replaced


def test_an_image_is_measured_upright(here: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    _save("turned/a.jpg", encoded(noise(0, (40, 30)), "JPEG", exif=exif))
    report = _report("turned")
    assert (report["width"]["max"], report["height"]["max"]) == (30, 40)


def test_bad_files_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _good()
    _save("good/dog/half.png", encoded(noise(3))[:60])
    _save("good/dog/page.jpg", b"<html>")
    assert main(["data", "check", "good"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "5 images of 2 classes, 2 unreadable" and lines[-3] == "unreadable:"
    assert lines[-2].startswith("  good/dog/half.png (") and lines[-1].startswith("  good/dog/page.jpg (")
    report = _report("good")
    assert [bad["image"] for bad in report["unreadable"]] == ["good/dog/half.png", "good/dog/page.jpg"]
    assert all(bad["reason"] for bad in report["unreadable"]) and report["readable"] == 3


def test_nothing_but_bad_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _save("bad/a.png", b"")
    assert main(["data", "check", "bad", "--out", "found"]) == 1
    assert "1 images of 1 class, 1 unreadable" in capsys.readouterr().out
    assert [item.name for item in Path("found").iterdir()] == ["report.json"]


def test_duplicates(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _good()
    _save("good/cat/again.png", encoded(noise(0, (40, 30))))
    _save("good/dog/cat.jpg", encoded(noise(1, (200, 300)).convert("L"), "JPEG"))
    assert main(["data", "check", "good"]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "exact duplicates: 2 groups, 1 of them under different labels",
        "  good/cat/1.jpg [cat] = good/dog/cat.jpg [dog]",
        "  good/cat/0.png = good/cat/again.png",
    ]
    report = _report("good")
    assert report["duplicates_with_different_labels"] == 1
    assert {tuple(group["labels"]) for group in report["duplicates"]} == {("cat", "cat"), ("cat", "dog")}
    assert all(len(group["sha256"]) == 64 for group in report["duplicates"])


@pytest.mark.parametrize("count", [1, 3, 200])
def test_few_and_many_classes(here: Path, capsys: pytest.CaptureFixture[str], count: int) -> None:
    files = {f"{number:03d}/a.png": encoded(noise(number, (8, 8))) for number in range(count)}
    report = _report(str(write_tar(here / "all.tar", files)))
    assert len(report["classes"]) == count and report["readable"] == count
    out = capsys.readouterr().out
    assert ("180 more classes (--out writes all of them)" in out) == (count == 200)
    with Image.open("found/sheet.png") as sheet:
        assert sheet.height == count * 114


def test_a_class_shows_images_from_all_over_it(here: Path) -> None:
    for number in range(30):
        shade = Image.new("RGB", (8, 8), (8 * number, 0, 0))
        _save(f"many/a/{number:02d}.png", encoded(shade))
    _report("many")
    with Image.open("found/sheet.png") as sheet:
        assert sheet.width == 8 * 98 + 2
        shades = [sheet.getpixel((98 * column + 50, 64))[0] for column in range(8)]  # type: ignore[index]
    assert shades[0] == 0 and shades[-1] == 8 * 29 and shades == sorted(set(shades))


def test_it_shows_progress_on_a_terminal_only(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _good()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(["data", "check", "good"]) == 0
    assert "3/3" in capsys.readouterr().err


def test_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "check", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "exit code is 0 when every image can be read, 1 when some cannot, 2 for" in out
    assert "--out" in out and "report.json" in out
