"""Zip and tar files: the same images as in a folder, read where they lie; patterns of several files."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy
import pytest
from torch.utils.data import DataLoader

from images import SourceAsDataset, encoded, noise, write_tar, write_zip
from nextscale.data.sources import BadImageError, Source, open_source

FILES = {
    "dog/1.png": encoded(noise(0)),
    "cat/b.PNG": encoded(noise(1)),
    "cat/a.2.jpeg": encoded(noise(2), "JPEG"),
    "cat/a.1.jpeg": encoded(noise(3), "JPEG"),
    "dog/potter's Zürich.png": encoded(noise(4)),
    "dog/notes.txt": b"no image",
    "__MACOSX/dog/._1.png": b"of a file manager",
    "dog/.hidden.png": b"hidden",
}


def _all(source: Source) -> list[tuple[str, bytes]]:
    return [(source.class_names[label], source.read(i)) for i, label in enumerate(source.labels)]


def _folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize("wrapper", ["", "./", "pictures/", "a/b/"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_is_like_its_folder(tmp_path: Path, kind: str, wrapper: str) -> None:
    folder = open_source(_folder(tmp_path / "pictures", FILES))
    assert len(folder.labels) == 5
    write = write_zip if kind == "zip" else write_tar
    source = open_source(
        write(tmp_path / f"all.{kind}", {wrapper + name: content for name, content in FILES.items()})
    )
    assert source.class_names == folder.class_names == ("cat", "dog")
    assert source.labels.dtype == numpy.int64 and _all(source) == _all(folder)
    names = [name.split("pictures/")[1] for name in map(folder.name, range(5))]
    assert [source.name(i) for i in range(5)] == [
        f"{tmp_path}/all.{kind}:{wrapper.replace('./', '')}{name}" for name in names
    ]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_ways_of_packing(tmp_path: Path, method: int) -> None:
    source = open_source(write_zip(tmp_path / "all.zip", FILES, method))
    assert {content for _, content in _all(source)} == {FILES[name] for name in list(FILES)[:5]}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_images_alone_are_one_class(tmp_path: Path, kind: str) -> None:
    write = write_zip if kind == "zip" else write_tar
    source = open_source(
        write(tmp_path / f"holiday.{kind}", {f"{i}.png": encoded(noise(i)) for i in range(3)})
    )
    assert source.class_names == ("holiday",) and source.labels.tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_without_order_are_refused(tmp_path: Path, kind: str) -> None:
    write = write_zip if kind == "zip" else write_tar
    file = write(tmp_path / f"a.{kind}", {"cat/a.png": b"x", "b.png": b"x"})
    with pytest.raises(ValueError, match=rf"a\.{kind} holds images \(b\.png\) beside class folders \(cat\)"):
        open_source(file)
    with pytest.raises(ValueError, match=rf"a\.{kind} holds no images: expected \.jpg"):
        open_source(write(tmp_path / f"a.{kind}", {"cat/notes.txt": b"x"}))


def test_of_two_members_with_one_name_the_later_counts(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"cat/a.png": b"old"})
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("cat/a.png")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"new"))
    source = open_source(path)
    assert _all(source) == [("cat", b"new")]


@pytest.mark.parametrize(("kind", "start_method"), [("zip", "fork"), ("zip", "spawn"), ("tar", "fork")])
def test_worker_processes_share_nothing(tmp_path: Path, kind: str, start_method: str) -> None:
    files = {f"{i % 3}/{i:03d}.png": encoded(noise(i)) for i in range(40)}
    write = write_zip if kind == "zip" else write_tar
    source = open_source(write(tmp_path / f"a.{kind}", files))
    expected = [source.read(i) for i in range(40)]  # a handle that stayed open would be shared from here on
    loader = DataLoader(SourceAsDataset(source), num_workers=2, multiprocessing_context=start_method)
    assert [content[0] for content in loader] == expected


# zip


@pytest.mark.parametrize("name", ["Zürich", "猫"])
def test_names_whose_letters_the_zip_does_not_declare(tmp_path: Path, name: str) -> None:
    """As macOS writes them: UTF-8 without the flag that says so."""
    path = write_zip(tmp_path / "a.zip", {f"{name}/a.png": b"x"})
    content = path.read_bytes()
    for signature, place in ((b"PK\3\4", 7), (b"PK\1\2", 9)):
        at = content.index(signature) + place
        content = content[:at] + bytes([content[at] & ~0x08]) + content[at + 1 :]
    path.write_bytes(content)
    assert open_source(path).class_names == (name,)


def test_damage_in_a_zip_is_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"cat/a.png": encoded(noise(0)), "cat/b.png": encoded(noise(1))})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\3\4", 4) - 50] ^= 0xFF
    path.write_bytes(content)
    source = open_source(path)
    assert source.read(1) == encoded(noise(1))
    with pytest.raises(BadImageError, match=r"image .*a\.zip:cat/a\.png cannot be read"):
        source.read(0)


def test_a_zip_cut_short_is_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", FILES)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"a\.zip is not a readable zip file .* may be cut short"):
        open_source(path)


def test_zips_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"cat/a.png": b"x"})
    content = path.read_bytes()
    at = content.index(b"PK\1\2") + 8
    path.write_bytes(content[:at] + bytes([content[at] | 1]) + content[at + 1 :])
    with pytest.raises(ValueError, match=r"a\.zip: cat/a\.png is encrypted"):
        open_source(path)
    source = open_source(write_zip(path, {"cat/a.png": b"x"}, zipfile.ZIP_LZMA))
    with pytest.raises(BadImageError, match="packed with method 14: pack it with deflate"):
        source.read(0)


# patterns


def test_patterns_that_fit_nothing(tmp_path: Path) -> None:
    write_tar(tmp_path / "a-0.tar", {"0.png": b""})
    with pytest.raises(
        ValueError, match=r"a-1\.tar does not exist \(2 of 3 that .*a-\{0\.\.2\}\.tar stands for\)"
    ):
        open_source(tmp_path / "a-{0..2}.tar")
    with pytest.raises(ValueError, match=r"no file fits .*b-\*\.tar"):
        open_source(tmp_path / "b-*.tar")
    with pytest.raises(ValueError, match=r"\{5\.\.2\} counts no files"):
        open_source(tmp_path / "a-{5..2}.tar")


def test_a_name_that_looks_like_a_pattern(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a[1]{0..2}*.tar", {"0.png": b"x"})
    assert open_source(path).read(0) == b"x"


def test_files_of_several_kinds_or_splits_are_not_mixed(tmp_path: Path) -> None:
    write_tar(tmp_path / "images-train-0.tar", {"0.png": b"x"})
    write_tar(tmp_path / "images-test-0.tar", {"0.png": b"x"})
    with pytest.raises(ValueError, match=r"several splits \(test, train\): .*'.*/\*test\*\.tar'"):
        open_source(tmp_path)
    assert len(open_source(tmp_path / "*train*.tar").labels) == 1
    write_zip(tmp_path / "images.zip", {"0.png": b"x"})
    with pytest.raises(ValueError, match=r"of several kinds \(\.tar, \.zip\)"):
        open_source(tmp_path / "images*")
