"""What an interpreter runs or obeys before our code: `.pth` files, sitecustomize, caches, the environment.

Special here: Python runs the lines of a `.pth` file that begin with ``import``, and a `.pyc` whose header
says so without looking at its source. Both are ways to run code that no source file shows.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from importlib.util import cache_from_source, find_spec
from pathlib import Path

from nextscale import checkpoint
from nextscale.integrity.packages import Package

#: Which code is loaded, and from where.
_LOADING = ("PYTHON", "LD_", "DYLD_")
#: How numbers come out.
_NUMERIC = (
    "OMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "KMP_", "GOMP_", "DNNL_", "ATEN_", "TORCH", "CUDA_", "CUBLAS_",
    "CUDNN_", "NVIDIA_", "NCCL_",
)  # fmt: skip
#: What differs from start to start and decides nothing.
_IDLE = (
    "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUDA_HOME", "CUDA_PATH", "TORCHELASTIC_",
    "PYTHONUNBUFFERED", "PYTHONIOENCODING", "PYTHONWARNINGS", "PYTHONFAULTHANDLER", "PYTHONUTF8",
    "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "PYTHONTRACEMALLOC",
)  # fmt: skip
_UNCHECKED = 0b01  # flags of a cache that is taken whatever its source holds


def environment() -> dict[str, str]:
    """The variables that decide which code is loaded or how numbers come out."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(_LOADING + _NUMERIC) and not name.startswith(_IDLE)
    }


def loads_code(variable: str) -> bool:
    """Whether an environment variable decides which code is loaded."""
    return variable.startswith(_LOADING)


def startup_files(packages: list[Package]) -> dict[str, str]:
    """Digests of what runs at the interpreter's start and belongs to no package, by path."""
    owned = {path for package in packages for path in package.files}
    places = {os.path.realpath(place) for place in sys.path if place and os.path.isdir(place)}
    found = {str(file) for place in sorted(places) for file in Path(place).glob("*.pth")} - owned
    for name in ("sitecustomize", "usercustomize"):
        module = sys.modules.get(name) or find_spec(name)
        place = getattr(module, "__file__", None) or getattr(module, "origin", None)
        if place:
            found.add(os.path.realpath(place))
    return {path: checkpoint.digest(Path(path)) for path in sorted(found)}


def bad_caches() -> list[str]:
    """Compiled files of imported modules that run without a source, or whatever the source says, in words."""
    found = []
    for name, module in sorted(sys.modules.items()):
        path = str(getattr(module, "__dict__", {}).get("__file__"))
        if path.endswith(".pyc"):
            found.append(f"{path} of {name} runs without a source file")
        elif path.endswith(".py") and os.path.isfile(path):
            cache = cache_from_source(path)
            if _flags(cache) == _UNCHECKED:
                found.append(f"{cache} of {name} runs whatever its source file holds")
    return found


def _flags(cache: str) -> int:
    try:
        with open(cache, "rb") as file:
            return int.from_bytes(file.read(8)[4:], "little")
    except OSError:
        return 0


def interpreter() -> dict[str, str]:
    """Which Python this is, and a digest of each module and package of its library."""
    path, home = os.path.realpath(sys.executable), Path(sysconfig.get_path("stdlib"))
    found = {"path": path, "sha256": checkpoint.digest(Path(path)), "version": sys.version}
    for place in sorted(home.iterdir()):
        files = [place] if place.is_file() else sorted(place.rglob("*"))
        if place.name in ("site-packages", "dist-packages", "__pycache__", "test"):
            continue
        digests = [
            f"{file.relative_to(home)} {checkpoint.digest(file)}"
            for file in files
            if file.suffix in (".py", ".so") and file.is_file()
        ]
        if digests:
            found[f"library {place.name}"] = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return found
