"""The fingerprint: every kind of change to code, packages, startup and environment is named."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import nextscale
from nextscale.integrity.fingerprint import changes, code_files, first_few, take_fingerprint
from nextscale.integrity.packages import changed_files, in_use, installed, loaded_files

SITE = "site-packages"


def _install(site: Path, name: str, files: dict[str, str]) -> None:
    """A package as an installer leaves it."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    rows = [f"{info.name}/METADATA,,", f"{info.name}/RECORD,,"]
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(text)}")
    (info / "RECORD").write_text("\n".join(rows) + "\n")


def _record(site: Path) -> Path:
    return site / "toy-1.0.dist-info" / "RECORD"


def _fill(site: Path) -> None:
    """Packages as they should be, in the place of what is there."""
    shutil.rmtree(site, ignore_errors=True)
    _install(site, "toy", {"toy/__init__.py": "", "toy/step.py": "LR = 1.0\n", "toy/data.bin": "1"})
    _install(site, "idle", {"idle/__init__.py": ""})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packages").resolve() / SITE


@pytest.fixture
def site(place: Path) -> Path:
    _fill(place)
    return place


def _take(site: Path, *, code: str = "", variables: dict[str, str] | None = None) -> dict[str, str]:
    """The fingerprint of a fresh process that has imported the toy package; ``wrong`` under that name."""
    program = f"""
        import json, site
        site.addsitedir({str(site)!r})
        {code or "import toy.step"}
        from nextscale.integrity.fingerprint import take_fingerprint
        taken = take_fingerprint({{"device": "cpu"}})
        print(json.dumps({{**taken.lines, "wrong": "; ".join(taken.wrong)}}))
    """
    known = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    known |= {"PYTHONPATH": str(Path(nextscale.__file__).parent.parent), **(variables or {})}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        env=known,
    )
    lines: dict[str, str] = json.loads(done.stdout)
    return lines


def _edit(file: str, text: str) -> Callable[[Path], None]:
    def change(site: Path) -> None:
        path = site / file
        before = path.stat()
        path.write_text(text)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as somebody would who hides it

    return change


def _edit_with_record(site: Path) -> None:
    old, new = (hashlib.sha256(text).digest() for text in (b"LR = 1.0\n", b"LR = 2.0\n"))
    _edit("toy/step.py", "LR = 2.0\n")(site)
    text = _record(site).read_text()
    texts = [base64.urlsafe_b64encode(digest).rstrip(b"=").decode() for digest in (old, new)]
    assert texts[0] in text
    _record(site).write_text(text.replace(*texts))


ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "source edited": (_edit("toy/step.py", "LR = 2.0\n"), r"toy/step\.py of toy is not what was installed"),
    "data edited": (_edit("toy/data.bin", "2"), r"toy/data\.bin of toy is not what was installed"),
    "file removed": (lambda site: (site / "toy/data.bin").unlink(), r"toy/data\.bin of toy is missing"),
    "source and RECORD edited": (_edit_with_record, "package toy was 1.0 "),
    "RECORD removed": (lambda site: _record(site).unlink(), "toy was .* is 1.0 without RECORD|toy is gone"),
    "a .pth file": (lambda site: (site / "x.pth").write_text("import sys\n"), r"startup .*x\.pth is new"),
    "sitecustomize": (lambda site: (site / "sitecustomize.py").touch(), "startup .*sitecustomize.py is new"),
    "a module that nobody installed": (
        lambda site: (site / "toy/extra.py").write_text(""), r"stray .*toy/extra\.py is new"
    ),
}  # fmt: skip

LOAD = "import toy.step\n        try: import toy.extra\n        except ImportError: pass"


def _told(before: dict[str, str], after: dict[str, str]) -> str:
    refused, told = changes(before, after)
    return "; ".join([after["wrong"], *refused, *(text for text in told if "package" in text)])


@pytest.fixture(scope="module")
def honest(place: Path) -> dict[str, str]:
    """Two honest processes: what changes between them is nothing."""
    _fill(place)
    first = _take(place, code=LOAD)
    _fill(place)
    second = _take(place, code=LOAD)
    assert first == second and first["wrong"] == ""
    return first


def test_it_names_code_packages_interpreter_and_machine(honest: dict[str, str]) -> None:
    assert honest["package:toy"].startswith("1.0 ") and "package:idle" not in honest
    home = Path(nextscale.__file__).parent
    assert honest["code:train/loop.py"] == hashlib.sha256((home / "train/loop.py").read_bytes()).hexdigest()
    assert {"interpreter:sha256", "interpreter:library json", "hardware:device", "hardware:cores"} <= set(
        honest
    )
    assert set(code_files()) == {name.removeprefix("code:") for name in honest if name.startswith("code:")}


@pytest.mark.attack(by="fingerprint", names="file, package or variable")
@pytest.mark.parametrize("attack", ATTACKS)
def test_what_was_changed_is_named(attack: str, honest: dict[str, str], site: Path) -> None:
    change, expected = ATTACKS[attack]
    change(site)
    after = _take(site, code=LOAD)
    assert re.search(expected, _told(honest, after)), _told(honest, after)


@pytest.mark.attack(by="fingerprint", names="the cache")
def test_caches_that_need_no_source_are_named(site: Path) -> None:
    source = site / "toy/step.py"
    py_compile.compile(
        str(source), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH, doraise=True
    )
    assert "toy.step runs whatever its source file holds" in _take(site)["wrong"]
    py_compile.compile(str(source), cfile=str(site / "toy/bare.pyc"), doraise=True)
    assert "toy.bare runs without a source file" in _take(site, code="import toy.bare")["wrong"]


def test_variables_are_refused_or_told() -> None:
    before = {"variable:PYTHONPATH": "a", "numeric:OMP_NUM_THREADS": "1", "code:a.py": "0" * 64}
    after = {"variable:LD_PRELOAD": "evil.so", "numeric:OMP_NUM_THREADS": "2", "code:a.py": "1" * 64}
    refused, told = changes(before, after)
    assert refused == [
        "code a.py was changed", "variable LD_PRELOAD is new", "variable PYTHONPATH is gone"
    ]  # fmt: skip
    assert told == ["numeric OMP_NUM_THREADS was 1, is 2"]
    assert changes(after, after) == ([], [])


def test_variables_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONSTARTUP", "x.py")
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("HOME_OF_NOTHING", "y")
    lines = take_fingerprint({}).lines
    assert lines["variable:PYTHONSTARTUP"] == "x.py" and lines["numeric:MKL_CBWR"] == "AVX2"
    assert not [name for name in lines if "CUDA_VISIBLE" in name or "HOME_OF" in name]


def test_this_process_uses_what_was_installed() -> None:
    used, _ = in_use(installed(), loaded_files())
    assert {"torch", "numpy"} <= {package.name for package in used}
    assert changed_files([package for package in used if package.name == "numpy"]) == []


def test_a_list_ends_with_how_many_more() -> None:
    assert first_few(["a", "b"]) == "a; b" and first_few(list("abcde")) == "a; b; c and 2 more"
