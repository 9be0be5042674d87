"""No file and no network input reaches an unpickler or becomes code: in the source, and while it runs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import nextscale
from models_for_tests import write_pictures
from nextscale.convert.files import read_released_file
from nextscale.features.weights import read_weights

PACKAGE = Path(nextscale.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

#: Modules that read pickles or code, or send pickles to other processes.
FORBIDDEN_IMPORTS = {
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "multiprocessing",
    "ctypes", "cffi", "code", "runpy", "imp", "yaml", "torch.hub", "torch.package", "torch.multiprocessing",
    "torch.distributed.checkpoint", "torch.utils.cpp_extension",
}  # fmt: skip
#: What of them is harmless: the name of an error.
HARMLESS = {("integrity/pickles.py", "pickle.UnpicklingError")}
#: Functions that make code of text or objects of bytes, by their last name.
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "execfile", "exec_module", "spec_from_file_location",
    "all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list", "send_object_list",
    "recv_object_list", "read_pickle", "load_library", "load_inline", "import_module", "aoti_load_package",
    "system", "popen", "Popen",
}  # fmt: skip
#: Where one of them stands all the same, and why that is no way in.
ALLOWED = {
    ("__init__.py", "import_module"): "f'nextscale.{_HOMES[name]}'",  # a table of ours
    ("convert/__init__.py", "import_module"): "f'{__name__}.{home}'",
    ("export/__init__.py", "import_module"): "f'{__name__}.{home}'",
    ("cli/parser.py", "import_module"): "f'nextscale.cli.{module}'",  # the command's own module
    ("integrity/memory.py", "compile"): "Path(path).read_bytes()",  # compared, never run
    (
        "train/auditing.py",
        "Popen",
    ): "_command(self.folder, step, self.ranks)",  # this interpreter, our own command
    ("export/programs.py", "aoti_load_package"): "str(path)",  # programs are code, and the documents say so
}
#: Methods of modules that are called like the built-in function.
METHODS = {("re", "compile"), ("torch", "compile"), ("block", "compile")}
Problem = tuple[str, int, str]


def _name(node: ast.expr) -> str:
    """``a.b.c`` of a function that is called, as far as it is written like that."""
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _keyword(call: ast.Call, name: str) -> object:
    """The constant that a call passes by a name."""
    values = [item.value for item in call.keywords if item.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


def problems(source: str, where: str) -> Iterator[Problem]:
    """What in a source file could run what it reads."""
    tree = ast.parse(source)
    for line, name in _imports(tree):
        parents = {name.rsplit(".", count)[0] for count in range(name.count(".") + 1)}
        if parents & FORBIDDEN_IMPORTS and (where, name) not in HARMLESS:
            yield where, line, f"import of {name}"
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = _name(call.func)
        owner, _, last = name.rpartition(".")
        if last == "load" and owner == "torch" and _keyword(call, "weights_only") is not True:
            yield where, call.lineno, "torch.load without weights_only=True"
        elif last == "load" and owner in ("numpy", "np") and _keyword(call, "allow_pickle") is not False:
            yield where, call.lineno, "numpy.load without allow_pickle=False"
        elif last in FORBIDDEN_CALLS and not _is_harmless(call, where, owner, last):
            yield where, call.lineno, f"{name}({', '.join(ast.unparse(item) for item in call.args)})"


def _is_harmless(call: ast.Call, where: str, owner: str, last: str) -> bool:
    if last == "eval" and owner:  # module.eval()
        return not call.args
    if (owner, last) in METHODS:
        return True
    given = ast.unparse(call.args[0]) if call.args else ""
    return (where, last) in ALLOWED and ALLOWED[where, last] == given


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_source_runs_what_it_reads(file: Path) -> None:
    where = str(file.relative_to(PACKAGE))
    assert list(problems(file.read_text(), where)) == []


BAD = [
    "import pickle", "from pickle import loads", "import torch.distributed.checkpoint as dcp",
    "from torch.distributed import checkpoint", "import dill", "from multiprocessing import Queue",
    "torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=flag)",
    "numpy.load(path)", "numpy.load(path, allow_pickle=True)", "eval(text)", "exec(text)",
    "builtins.exec(text)",
    "importlib.import_module(config['class'])", "__import__(name)", "compile(text, 'x', 'exec')",
    "torch.distributed.broadcast_object_list(items)", "os.system(text)", "torch.ops.load_library(path)",
]  # fmt: skip


@pytest.mark.parametrize("source", BAD)
def test_the_search_finds_what_it_should(source: str) -> None:
    assert len(list(problems(source, "any.py"))) == 1


def test_the_exceptions_are_still_needed() -> None:
    found = set()
    for file in FILES:
        where = str(file.relative_to(PACKAGE))
        calls = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))
        found |= {(where, _name(call.func).rpartition(".")[2]) for call in calls}
    assert set(ALLOWED) <= found


# while it runs: Python tells of every object that an unpickler looks up

WATCHED = """
import sys
seen = []
def note(event, arguments):
    if event == "pickle.find_class":
        seen.append((event, arguments))
sys.addaudithook(note)
{body}
print(len(seen), seen[:3])
"""

SAMPLE = """
from nextscale import Generator
generator = Generator.load("cifar10-tiny")
generator(labels=[3], seeds=[0])
generator.save("model")
Generator.load("model")
"""
TRAIN = """
from nextscale.cli import main
line = ["train", "tokenizer", "cifar10-tiny", "--data.source", "pictures", "--out", "run", "--quiet",
        "--loop.batch_size", "2", "--loop.evaluate_images", "2", "--loop.num_steps", "2",
        "--ledger.fingerprint", "false"]
assert main(line) == 0
assert main(line) == 0, "goes on"
assert main(["verify", "run"]) == 0
"""
CONVERT = """
import torch
from golden_weights import states
from nextscale.cli import main
for name, state in zip(("tokenizer.pth", "prior.pth"), states("base")):
    torch.save(state, name)
del seen[:]
assert main(["convert", "--tokenizer", "tokenizer.pth", "--prior", "prior.pth", "--out", "converted"]) == 0
"""
UNPICKLE = """
import collections, pickle
pickle.loads(pickle.dumps(collections.OrderedDict()))
"""


def _watched(body: str, folder: Path) -> str:
    code = f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\n" + WATCHED.format(body=body)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("body", [SAMPLE, TRAIN, CONVERT], ids=["sample", "train", "convert"])
def test_no_unpickler_is_at_work(body: str, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 8, (32, 32), num_classes=2)
    assert _watched(body, tmp_path) == "0 []"


def test_an_unpickler_would_be_seen(tmp_path: Path) -> None:
    assert _watched(UNPICKLE, tmp_path).startswith("1 [('pickle.find_class'")


# what is read with an unpickler of its own, which knows tensors only


class _Evil:
    def __init__(self, act: Callable[..., object], *arguments: object) -> None:
        self.act, self.arguments = act, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.act, self.arguments


def _read_weights(path: Path) -> object:
    return read_weights(str(path), purpose="features")


@pytest.mark.parametrize("read", [read_released_file, _read_weights], ids=["convert", "features"])
def test_a_checkpoint_with_code_is_refused_and_not_run(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    torch.save({"weight": _Evil(Path.touch, tmp_path / "was here")}, tmp_path / "evil.pth")
    with pytest.raises(
        ValueError, match=r"evil\.pth was not loaded, because it would run code: it holds .*(touch|getattr)"
    ):
        read(tmp_path / "evil.pth")
    assert not (tmp_path / "was here").exists()
