"""Code that is replaced while a run goes on: what a namespace held at the start, it must hold later.

Special here: a look compares identities and takes milliseconds, so that it can be taken often. Objects
(layers, an optimizer, their hooks) are looked at anew each time.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple

import torch

from nextscale.integrity.memory import (
    Sources,
    functions_in,
    is_foreign,
    place_of,
    replaced_functions,
    watched_modules,
)

_COMPILER = str(Path(torch.__file__).parent / "_dynamo" / "mutation_guard.py")


class _Entry(NamedTuple):
    where: str
    names: Mapping[str, Any]
    name: str
    value: object
    parts: tuple[object, ...]


class Watch:
    """Remembers functions, methods and classes.

    Args:
        modules: by name; None: the watched ones.
    """

    def __init__(self, modules: Mapping[str, ModuleType] | None = None) -> None:
        self.entries: list[_Entry] = []
        self.known: set[str] = set()
        self._take_in(watched_modules() if modules is None else modules)

    def _take_in(self, modules: Mapping[str, ModuleType]) -> None:
        self.known |= set(modules)
        self.entries += [entry for name, module in modules.items() for entry in _entries_of(name, module)]

    def added(self) -> list[str]:
        """What modules that were imported since the last call hold that is not in their sources, in words."""
        new = {name: module for name, module in watched_modules().items() if name not in self.known}
        self._take_in(new)
        return replaced_functions(new) if new else []

    def changed(self) -> list[str]:
        """What is other than at the start, by name."""
        found = []
        for index, entry in enumerate(self.entries):
            value = entry.names.get(entry.name)
            if value is entry.value and _alike(entry.parts, _parts(value)):
                continue
            if _wrapped_by_compiler(entry, value):
                self.entries[index] = entry._replace(value=value, parts=_parts(value))
            else:
                found.append(f"{entry.where}.{entry.name}")
        return found


def _wrapped_by_compiler(entry: _Entry, value: object) -> bool:
    """Whether torch.compile has put its own, unchanged wrapper around what was there: it does so with
    `Module.__init__` when it compiles for the first time, which is after the start.
    """
    if not isinstance(value, FunctionType) or value.__code__.co_filename != _COMPILER:
        return False
    inside = [cell.cell_contents for cell in value.__closure__ or ()]
    return any(item is entry.value for item in inside) and not is_foreign(value, Sources())


def _entries_of(where: str, module: ModuleType) -> Iterator[_Entry]:
    yield from _entries(where, vars(module))
    for name, value in list(vars(module).items()):
        if inspect.isclass(value) and value.__module__ == where:
            yield from _entries(f"{where}.{name}", vars(value))


def _entries(where: str, names: Mapping[str, Any]) -> Iterator[_Entry]:
    for name, value in list(names.items()):
        parts = _parts(value)
        if parts or inspect.isclass(value) or isinstance(value, BuiltinFunctionType):
            yield _Entry(where, names, name, value, parts)


def _parts(value: object) -> tuple[object, ...]:
    """What a function runs and begins with."""
    found: list[object] = []
    for function in functions_in(value):
        named = function.__kwdefaults__ or {}
        found += [function, function.__code__, function.__defaults__, *named.values()]
    return tuple(found)


def _alike(first: tuple[object, ...], second: tuple[object, ...]) -> bool:
    return len(first) == len(second) and all(old is new for old, new in zip(first, second, strict=True))


def put_into(objects: Iterable[tuple[str, Mapping[str, object]]]) -> list[str]:
    """Functions in objects (a layer's own ``forward``, hooks) that no installed file holds, in words.

    Args:
        objects: their names and attributes; an attribute with *hook* in its name may be a dict of functions.
    """
    sources = Sources()
    found = []
    for where, attributes in objects:
        for name, value in attributes.items():
            values = value.values() if isinstance(value, dict) and "hook" in name else [value]
            found += [
                f"{where}.{name} ({place_of(function)})"
                for item in list(values)
                for function in functions_in(item)
                if is_foreign(function, sources)
            ]
    return found
