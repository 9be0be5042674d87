"""Code that was replaced in memory: functions that are not what compiling their source files gives.

Special here: no second process is needed. A function's code must equal the one of its name in the source of
the module or class that holds it; what wraps it, and what those wrappers hold, must come out of installed
files and equal these. That finds caches (`.pyc`) that differ from their source, too. What it cannot see:
values that are no functions (a default, a constant), and functions that a library makes from text.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

#: The modules whose functions are looked at, with all below them.
WATCHED = ("nextscale", "torch.optim", "torch.nn", "torch.autograd", "torch.utils.data")
#: Modules that are looked at by themselves.
_ALONE = ("torch", "torch.functional", "torch._tensor")
#: Classes whose methods torch fills in while it is imported.
_FILLED_IN = ("torch.SymInt", "torch.SymFloat", "torch.SymBool")
_DEPTH = 6  # of functions that hold functions


def watched_modules() -> dict[str, ModuleType]:
    """What has been imported of them, by name."""
    return {
        name: module
        for name, module in sorted(sys.modules.items())
        if isinstance(module, ModuleType)
        and (name in _ALONE or any(name == top or name.startswith(f"{top}.") for top in WATCHED))
    }


def functions_in(value: object) -> Iterator[FunctionType]:
    """The functions that a value of a namespace runs when it is used."""
    if isinstance(value, FunctionType):
        yield value
    elif isinstance(value, staticmethod | classmethod | MethodType):
        yield from functions_in(value.__func__)
    elif isinstance(value, property):
        for part in (value.fget, value.fset, value.fdel):
            yield from functions_in(part)
    elif isinstance(value, functools.partial | functools.partialmethod | functools.cached_property):
        yield from functions_in(value.func)
    elif isinstance(value, functools._lru_cache_wrapper):
        yield from functions_in(value.__wrapped__)


def _inside(function: FunctionType) -> Iterator[FunctionType]:
    """What a function wraps or holds."""
    yield from functions_in(getattr(function, "__wrapped__", None))
    for cell in function.__closure__ or ():
        try:
            yield from functions_in(cell.cell_contents)
        except ValueError:  # nothing in it yet
            continue


def code_key(code: CodeType) -> tuple[object, ...]:
    """What a code does, without where it stands: equal for equal sources."""
    consts = tuple(code_key(item) if isinstance(item, CodeType) else _const(item) for item in code.co_consts)
    return (
        code.co_name, code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars,
        code.co_flags, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount,
        code.co_exceptiontable, consts,
    )  # fmt: skip


def _const(value: object) -> object:
    """Tells 1 from 1.0 and True, and 0.0 from -0.0; a set has no order."""
    if isinstance(value, frozenset):
        return "set", *sorted(map(repr, value))
    return type(value).__name__, repr(value)


@dataclass
class Sources:
    """Compiled source files, each once."""

    _found: dict[str, tuple[CodeType | None, dict[str, set[tuple[object, ...]]]]] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        homes = [Path(__file__).parents[1], *map(Path, sysconfig.get_paths().values())]
        self.homes = tuple(f"{os.path.realpath(home)}{os.sep}" for home in homes)

    def of(self, path: str) -> tuple[CodeType | None, dict[str, set[tuple[object, ...]]]]:
        """The code of a file's module, and the keys of all codes in it by qualified name."""
        if path not in self._found:
            try:
                module = compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
            except (OSError, SyntaxError, ValueError):
                module = None
            keys: dict[str, set[tuple[object, ...]]] = {}
            for code in _codes(module) if module else ():
                keys.setdefault(code.co_qualname, set()).add(code_key(code))
            self._found[path] = module, keys
        return self._found[path]

    def _file_of(self, code: CodeType) -> str:
        """Where the source of a code should be; parts of the interpreter's library are built into it."""
        path = code.co_filename
        if not path.startswith("<frozen "):
            return path
        place = os.path.join(sysconfig.get_path("stdlib"), *path[8:-1].split("."))
        return os.path.join(place, "__init__.py") if os.path.isdir(place) else f"{place}.py"

    def holds(self, code: CodeType) -> bool:
        """Whether an installed file has this very code, under this name."""
        path = os.path.realpath(self._file_of(code))
        return path.startswith(self.homes) and code_key(code) in self.of(path)[1].get(code.co_qualname, ())


def _codes(code: CodeType) -> Iterator[CodeType]:
    for item in code.co_consts:
        if isinstance(item, CodeType):
            yield item
            yield from _codes(item)


def _made_from_text(holder: object, name: str) -> bool:
    """Whether a dataclass or a named tuple may have made a method from text."""
    made = hasattr(holder, "__dataclass_fields__") or hasattr(holder, "_fields")
    return made and name.startswith("__")


def is_foreign(function: FunctionType, sources: Sources, *, made: bool = False, depth: int = _DEPTH) -> bool:
    """Whether a function, or one that it wraps or holds, is in no installed file.

    Args:
        function: any.
        sources: compiled.
        made: whether it may have been made from text.
        depth: how far to look inside.
    """
    if made and function.__code__.co_filename == "<string>":
        return False
    if not sources.holds(function.__code__):
        return True
    inside = _inside(function) if depth else ()
    return any(is_foreign(item, sources, made=made, depth=depth - 1) for item in inside)


def _keys_inside(function: FunctionType, depth: int = _DEPTH) -> Iterator[tuple[object, ...]]:
    yield code_key(function.__code__)
    if depth:
        for item in _inside(function):
            yield from _keys_inside(item, depth - 1)


def _wrong_in(
    holder: object, names: Mapping[str, Any], *, where: str, path: str, prefix: str, sources: Sources
) -> Iterator[str]:
    """The functions of a module or class that are not what they should be, by name."""
    written = sources.of(path)[1]
    for name, value in list(names.items()):
        expected, functions = written.get(prefix + name, set()), list(functions_in(value))
        if expected and not functions and callable(value) and not inspect.isclass(value):
            yield f"{where}.{name} is no function, though its source file says so"
        for function in functions:
            made = _made_from_text(holder, name)
            if is_foreign(function, sources, made=made) or (
                expected and not expected & set(_keys_inside(function))
            ):
                yield f"{where}.{name} is not what its source file says ({place_of(function)})"
                break


def place_of(function: FunctionType) -> str:
    """Where the code of a function comes from, in words."""
    code = function.__code__
    return f"it is {code.co_qualname} of {code.co_filename} line {code.co_firstlineno}"


def replaced_functions(modules: Mapping[str, ModuleType] | None = None) -> list[str]:
    """The functions and methods of modules that were replaced, in words.

    Args:
        modules: by name; None: the watched ones.
    """
    sources = Sources()
    found: list[str] = []
    for name, module in (watched_modules() if modules is None else modules).items():
        path = os.path.realpath(getattr(module, "__file__", None) or "")
        if not path.endswith(".py") or not os.path.isfile(path):
            continue
        values = dict(vars(module))
        found += _wrong_in(module, values, where=name, path=path, prefix="", sources=sources)
        for key, value in values.items():
            if f"{name}.{key}" in _FILLED_IN:
                continue
            if inspect.isclass(value) and value.__module__ == name:
                found += _wrong_class(value, key, where=name, path=path, sources=sources)
            elif inspect.isclass(value) and _class_is_foreign(value, sources):
                found.append(f"{name}.{key} is a class of {value.__module__}, which is not installed")
    return found


def _wrong_class(value: type, key: str, *, where: str, path: str, sources: Sources) -> Iterator[str]:
    prefix = f"{value.__qualname__}."
    yield from _wrong_in(
        value, vars(value), where=f"{where}.{key}", path=path, prefix=prefix, sources=sources
    )


def _class_is_foreign(value: type, sources: Sources) -> bool:
    """Whether a class comes out of a Python file that nobody installed."""
    path = getattr(sys.modules.get(value.__module__), "__file__", None)
    own = [item for entry in vars(value).values() for item in functions_in(entry)]
    inside = path is None or os.path.realpath(path).startswith(sources.homes)
    return not inside and any(not sources.holds(item.__code__) for item in own)
