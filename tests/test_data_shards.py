"""WebDataset shards and tars of folders: samples, labels, and shards that are cut short."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from images import encoded, noise, write_tar
from nextscale.data.sources import BadImageError, open_source


def _samples(count: int, first: int = 0) -> dict[str, bytes]:
    files = {}
    for i in range(first, first + count):
        files |= {f"{i:05d}.jpg": encoded(noise(i), "JPEG"), f"{i:05d}.cls": str(i % 4).encode()}
    return files


@pytest.mark.parametrize(
    "pattern", ["", "shards-{000..002}.tar", "shards-*.tar", "shards-{000,001}.tar"], ids=str
)
def test_shards(tmp_path: Path, pattern: str) -> None:
    """Keys may begin anew in every shard."""
    for shard in range(3):
        write_tar(tmp_path / f"shards-{shard:03d}.tar", _samples(6, 6 * (shard % 2)))
    source = open_source(str(tmp_path / pattern) if pattern else tmp_path)
    count = 12 if "," in pattern else 18
    assert source.class_names == ("0", "1", "2", "3") and len(source.labels) == count
    expected = [*range(12), *range(6)][:count]
    assert source.labels.tolist() == [i % 4 for i in expected]
    assert [source.read(i) for i in range(count)] == [encoded(noise(i), "JPEG") for i in expected]
    assert source.name(7) == f"{tmp_path}/shards-001.tar:00007.jpg"


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_any_letters(tmp_path: Path, layout: int) -> None:
    directory = "Zürich's " + "d" * 90
    files = {f"{directory}/{'n' * 90}.png": encoded(noise(0))}
    source = open_source(write_tar(tmp_path / "a.tar", files, format=layout))
    assert source.class_names == (directory,) and source.read(0) == encoded(noise(0))


@pytest.mark.parametrize(
    ("labels", "class_names", "expected"),
    [
        ([b"2", b"0\n"], ("0", "1", "2"), [2, 0]),
        ([b"dog", "Zürich".encode()], ("Zürich", "dog"), [1, 0]),
        ([{"label": 1}, {"label": 0}], ("0", "1"), [1, 0]),
        ([{"cls": "dog", "width": 3}, {"cls": "cat"}], ("cat", "dog"), [1, 0]),
        ([{"caption": "x"}, {"caption": "y"}], ("a",), [0, 0]),
        ([[1], "text"], ("a",), [0, 0]),
    ],
    ids=["numbers", "names", "json", "json names", "no labels", "other json"],
)
def test_labels(
    tmp_path: Path, labels: list[object], class_names: tuple[str, ...], expected: list[int]
) -> None:
    files = {}
    for i, label in enumerate(labels):
        files[f"{i}.png"] = encoded(noise(i))
        name, content = ("cls", label) if isinstance(label, bytes) else ("json", json.dumps(label).encode())
        files[f"{i}.{name}"] = content
    source = open_source(write_tar(tmp_path / "a.tar", files))
    assert source.class_names == class_names and source.labels.tolist() == expected


def test_a_sample_may_hold_other_things(tmp_path: Path) -> None:
    files = {"d/0.txt": b"x", "d/0.mask.png": b"mask", "d/0.jpg": b"image", "d/0.json": b'{"label": 3}'}
    files |= {"d/0.cls": b"1", "e/0.jpg": b"other", "e/0.cls": b"0", "classes.json": b"not beside an image"}
    source = open_source(write_tar(tmp_path / "a.tar", files))
    assert [source.read(i) for i in range(2)] == [b"image", b"other"] and source.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"0.cls": b"1", "1.jpg": b""}, r"a\.tar:1\.jpg has no label beside it, though others have one"),
        ({"0.cls": b"1", "1.jpg": b"", "1.cls": b"cat"}, r"class numbers \(1\) and names \(cat\)"),
        ({"0.cls": b"1", "0.png": b""}, r"0\.jpg and 0\.png are one sample: expected one image"),
        ({"0.cls": b""}, r"a\.tar:0\.cls gives the label '': expected a number or a class name"),
        ({"0.cls": b"-1"}, r"0\.cls gives the label -1: expected a number that counts from 0"),
        ({"0.cls": b"9" * 30}, r"gives the label 9+: expected a number that counts from 0"),
        ({"0.cls": b"\xff"}, r"0\.cls cannot be read"),
        ({"0.json": b"{"}, r"0\.json cannot be read"),
        ({"0.json": b'{"label": true}'}, r"0\.json gives the label True"),
        ({"0.json": b'{"label": [1]}'}, r"0\.json gives the label \[1\]"),
    ],
    ids=["missing", "mixed", "two images", "empty", "negative", "huge", "text", "json", "bool", "list"],
)
def test_labels_that_do_not_fit(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(write_tar(tmp_path / "a.tar", {"0.jpg": b"", **files}))


@pytest.mark.parametrize("cut", ["header", "content", "padding", "between", "end mark"])
def test_a_shard_cut_short_is_refused_with_what_is_left(tmp_path: Path, cut: str) -> None:
    """At most 512 + 1024 bytes for each file: all images are below a kilobyte."""
    images = {f"cat/{i}.png": encoded(noise(i)) for i in range(4)}
    path = write_tar(tmp_path / "good.tar", images)
    with tarfile.open(path) as archive:
        third, fourth = archive.getmembers()[2:]
        end = archive.offset
    where = {
        "header": fourth.offset + 100, "content": third.offset_data + 10,
        "padding": third.offset_data + third.size, "between": third.offset, "end mark": end,
    }[cut]  # fmt: skip
    whole = {"header": 3, "content": 2, "padding": 3, "between": 2, "end mark": 4}[cut]
    bad = tmp_path / "bad.tar"
    bad.write_bytes(path.read_bytes()[:where])
    message = (
        rf"bad\.tar is cut short or damaged: {whole} whole files .* the last one cat/{whole - 1}\.png; fetch"
    )
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path)  # the good one beside it does not hide it


def test_damage_between_two_members_is_found(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{i}.png": encoded(noise(i)) for i in range(3)})
    with tarfile.open(path) as archive:
        place = archive.getmembers()[1].offset
    content = bytearray(path.read_bytes())
    content[place : place + 8] = b"damaged!"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"1 whole files can be read at its beginning, the last one 0\.png"):
        open_source(path)


def test_a_tar_that_shrinks_later_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"0.png": encoded(noise(0))})
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(BadImageError, match=r"a\.tar:0\.png cannot be read \(the archive ends before it\)"):
        source.read(0)


def test_tars_that_cannot_be_read_at_any_place(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(ValueError, match=r"packed\.tar is not a readable tar file .* not compressed"):
        open_source(tmp_path / "packed.tar")
    (tmp_path / "packed.tar").rename(tmp_path / "packed.tar.gz")
    with pytest.raises(ValueError, match=r"packed\.tar\.gz is compressed: unpack it to a \.tar"):
        open_source(tmp_path / "packed.tar.gz")
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        link = tarfile.TarInfo("cat/a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "b.png"
        archive.addfile(link)
    with pytest.raises(ValueError, match=r"links\.tar: cat/a\.png is a link: pack it with tar --dereference"):
        open_source(tmp_path / "links.tar")
