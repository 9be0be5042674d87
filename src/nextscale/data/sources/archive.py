"""Images in zip and tar files, read where they lie, without unpacking.

Special here: an archive is indexed once, and an image is then read by its offset. No handle stays open
between two reads, so worker processes share nothing, however they were started.
"""

from __future__ import annotations

import bz2
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from nextscale.data.sources.base import (
    EXTENSIONS,
    BadImageError,
    classes_of_folders,
    is_hidden,
    number_classes,
    printable,
)

_UTF8_FLAG, _ENCRYPTED_FLAG = 0x800, 0x1
_LOCAL_HEADER = 30  # bytes of a zip's header before the name
_MOST_BYTES = 2**30  # an image that unpacks to more is an attack
_TAR_BLOCK = 512


class Member(NamedTuple):
    """A file in an archive."""

    archive: Path
    path: tuple[str, ...]
    offset: int  #: of the content in a tar, of the header in a zip
    size: int  #: bytes to read
    method: int | None = None  #: how a zip has packed it; None: a tar, which packs nothing
    checksum: int = 0  #: CRC-32 of a zip's member


class ArchiveSource:
    """Archives laid out like a folder: a folder per class, or images alone, which are one class.

    One folder around all class folders does not count. The order is that of a folder.

    Raises:
        ValueError: no images, or images beside class folders.
    """

    def __init__(self, members: Sequence[Member], where: str, fallback: str) -> None:
        images = [member for member in members if is_image(member.path[-1])]
        paths = _without_wrapper([member.path for member in images])
        classes = classes_of_folders(paths, where, fallback)
        order = sorted(range(len(images)), key=lambda number: (classes[number], paths[number]))
        self.members = [images[number] for number in order]
        self.class_names, self.labels = number_classes([classes[number] for number in order], where)

    def read(self, index: int) -> bytes:
        return read_member(self.members[index])

    def name(self, index: int) -> str:
        return member_name(self.members[index])


def is_image(name: str) -> bool:
    """Whether a file's name ends like an image's."""
    return name.lower().endswith(EXTENSIONS)


def member_name(member: Member) -> str:
    """What to call a member in a message."""
    return printable(f"{member.archive}:{'/'.join(member.path)}")


def index_archive(file: Path) -> list[Member]:
    """Every visible file of a zip or a tar; of two with one name, the later one, as when unpacking.

    Raises:
        ValueError: the archive is damaged, cut short or packed in a way that hides its members.
    """
    members = _index_zip(file) if file.suffix.lower() == ".zip" else _index_tar(file)
    return list({member.path: member for member in members if not is_hidden(member.path)}.values())


def read_member(member: Member) -> bytes:
    """The content of a member. Raises BadImageError when it is damaged."""
    with member.archive.open("rb", buffering=0) as file:
        file.seek(member.offset)
        if member.method is None:
            content = file.read(member.size)
            if len(content) < member.size:
                raise BadImageError(member_name(member), "the archive ends before it")
            return content
        header = file.read(_LOCAL_HEADER)
        if len(header) < _LOCAL_HEADER or not header.startswith(b"PK\3\4"):
            raise BadImageError(member_name(member), "the archive is damaged before it")
        name_length, extra_length = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        file.seek(member.offset + _LOCAL_HEADER + name_length + extra_length)
        packed = file.read(member.size)
    try:
        content = _unpack(packed, member.method)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise BadImageError(member_name(member), error) from error
    if zlib.crc32(content) != member.checksum:
        raise BadImageError(member_name(member), "its checksum in the archive is another")
    return content


def _unpack(packed: bytes, method: int) -> bytes:
    if method == zipfile.ZIP_STORED:
        return packed
    if method == zipfile.ZIP_DEFLATED:
        inflater = zlib.decompressobj(-15)
        content, rest = inflater.decompress(packed, _MOST_BYTES), inflater.unconsumed_tail
    elif method == zipfile.ZIP_BZIP2:
        unpacker = bz2.BZ2Decompressor()
        content, rest = unpacker.decompress(packed, _MOST_BYTES), b"" if unpacker.eof else b"more"
    else:
        raise ValueError(f"it is packed with method {method}: pack it with deflate")
    if rest:
        raise ValueError(f"it unpacks to more than {_MOST_BYTES:,} bytes")
    return content


def _index_zip(file: Path) -> list[Member]:
    try:
        with zipfile.ZipFile(file) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a readable zip file ({error}): it may be cut short") from error
    members = []
    for info in infos:
        if info.flag_bits & _ENCRYPTED_FLAG:
            raise ValueError(f"{file}: {info.filename} is encrypted: pack it without a password")
        path = PurePosixPath(_zip_name(info)).parts
        members.append(
            Member(file, path, info.header_offset, info.compress_size, info.compress_type, info.CRC)
        )
    return members


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Many programs write UTF-8 and do not say so; zipfile then reads code page 437."""
    if not info.flag_bits & _UTF8_FLAG:
        try:
            return info.filename.encode("cp437").decode("utf-8")
        except UnicodeError:
            pass
    return info.filename


def _index_tar(file: Path) -> list[Member]:
    """The members of a tar from its headers alone."""
    members: list[Member] = []
    try:
        with tarfile.open(file, "r:", encoding="utf-8", errors="backslashreplace") as archive:
            whole = _walk_tar(archive, file, members)
    except tarfile.TarError as error:
        if not members:
            raise ValueError(
                f"{file} is not a readable tar file ({error}): expected one that is whole and not compressed"
            ) from error
        whole = False
    if not whole:
        last = f", the last one {'/'.join(members[-1].path)}" if members else ""
        raise ValueError(
            f"{file} is cut short or damaged: {len(members)} whole files can be read at its beginning{last}; "
            "fetch it again, or leave it out"
        )
    return members


def _walk_tar(archive: tarfile.TarFile, file: Path, members: list[Member]) -> bool:
    """Add whole members to ``members``. Returns whether the tar ends as it should: with a block of zeros."""
    assert archive.fileobj is not None
    size = file.stat().st_size
    while (info := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # they would pile up
        if info.isfile() and info.offset_data + info.size <= size:
            members.append(Member(file, PurePosixPath(info.name).parts, info.offset_data, info.size))
        elif (info.islnk() or info.issym()) and is_image(info.name):
            raise ValueError(
                f"{file}: {info.name} is a link: pack it with tar --dereference --hard-dereference"
            )
    archive.fileobj.seek(archive.offset)
    return archive.fileobj.read(_TAR_BLOCK) == bytes(_TAR_BLOCK)


def _without_wrapper(paths: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Take off the folders that lie around all class folders, as archives of a whole folder have them."""
    folders = {path[:-1] for path in paths}
    depth = 0
    for first, last in zip(min(folders, default=()), max(folders, default=()), strict=False):
        if first != last:
            break
        depth += 1
    if any(len(folder) == depth for folder in folders):  # these hold images: they are class folders
        return list(paths)
    return [path[depth:] for path in paths]
