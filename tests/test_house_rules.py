"""The house rules that a linter cannot check: sizes, cheap imports, documentation of what is public."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import nextscale

PACKAGE = Path(nextscale.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(nextscale.__path__, "nextscale.")
    if not module.name.endswith(".__main__")  # importing one runs it
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _id(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


def _functions(file: Path) -> list[Function]:
    return [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, Function)]


def _run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


def test_the_package_is_found() -> None:
    assert len(FILES) > 30 and len(MODULES) > 30


@pytest.mark.parametrize("file", FILES, ids=_id)
def test_sizes(file: Path) -> None:
    lines = len(file.read_text().splitlines())
    assert lines <= 300, f"{lines} lines"
    for function in _functions(file):
        assert function.end_lineno is not None
        lines = function.end_lineno - function.lineno + 1
        assert lines <= 60, f"{function.name}: {lines} lines"
        given = function.args
        names = [item.arg for item in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
        names = [name for name in names if name not in ("self", "cls")]
        assert len(names) <= 8, f"{function.name}: {len(names)} parameters"


@pytest.mark.parametrize("file", [file for file in FILES if "cli" not in file.parts], ids=_id)
def test_only_the_command_line_prints(file: Path) -> None:
    calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call, ast.Name) and call.id == "print"]


@pytest.mark.parametrize("file", [file for file in FILES if file.stat().st_size], ids=_id)
def test_what_is_public_is_documented(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree), "the module has no docstring"
    public = [node for node in tree.body if isinstance(node, Function | ast.ClassDef) and node.name[0] != "_"]
    assert not [node.name for node in public if not ast.get_docstring(node)]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name: str) -> None:
    importlib.import_module(name)


def test_settings_cost_no_torch() -> None:
    cheap = [name for name in MODULES if name.endswith(".settings")]
    assert len(cheap) >= 6
    imports = "\n".join(
        f"import {name}" for name in ["nextscale", "nextscale.config", "nextscale.scales", *cheap]
    )
    result = _run_python(f"{imports}\nimport sys\nassert 'torch' not in sys.modules")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], "reconstruct"),
        (["train", "--help"], "recipe"),
        (["train", "tokenizer", "cifar10-tiny", "--settings"], "--loop.num_steps"),
    ],
    ids=["help", "train help", "train settings"],
)
def test_help_and_settings_cost_no_torch(arguments: list[str], expected: str) -> None:
    result = _run_python(
        "import sys\n"
        "from nextscale.cli import main\n"
        "try:\n"
        f"    code = main({arguments})\n"
        "except SystemExit as stop:\n"
        "    code = stop.code\n"
        "assert not code, code\n"
        "assert 'torch' not in sys.modules"
    )
    assert result.returncode == 0, result.stderr
    assert expected in result.stdout


def test_a_source_tree_that_is_not_installed_imports() -> None:
    code = (
        "import importlib.metadata as metadata\n"
        "def none(name): raise metadata.PackageNotFoundError(name)\n"
        "metadata.version = none\n"
        "import nextscale; print(nextscale.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "not installed\n"
