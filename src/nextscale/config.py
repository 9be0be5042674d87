"""From a tree of plain values and command-line overrides to checked settings, with errors a person can act
on.

Special here: an override is ``--a.b.c VALUE``; the path is looked up in the settings classes themselves, so
there is no second list of options to keep true.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

Settings = TypeVar("Settings", bound=BaseModel)


def setting_paths(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every dotted path of a settings class with its description, in order; of a choice between classes
    those of all of them, each once.
    """
    for name, field in model.model_fields.items():
        nested = _nested(field.annotation)
        if not nested or get_origin(field.annotation) in (tuple, list):
            yield prefix + name, field.description or ""
            continue
        paths = [item for choice in nested for item in setting_paths(choice, f"{prefix}{name}.")]
        yield from dict(paths).items()


def _nested(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes that an annotation chooses from; none where it is a plain value."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [choice for part in get_args(annotation) for choice in _nested(part)]


def setting_values(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every dotted path of settings with its value and description, in order."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from setting_values(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value, field.description or ""


def parse_overrides(arguments: Sequence[str], model: type[BaseModel]) -> dict[str, Any]:
    """``["--loop.batch_size", "8", "--data.flip=true"]`` -> ``{"loop": {"batch_size": "8"}, "data": {"flip":
    True}}``.

    Lists, true, false and null are read as JSON, everything else as text that the settings class converts.

    Raises:
        ValueError: an unknown path (with the nearest one), a value missing, or something that is no option.
    """
    known = [path for path, _ in setting_paths(model)]
    tree: dict[str, Any] = {}
    remaining = list(arguments)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("--"):
            raise ValueError(
                f"unexpected {word!r}: settings are given as --name VALUE, for example --{known[0]} VALUE"
            )
        path, equals, text = word[2:].partition("=")
        path = path.replace("-", "_")
        if path not in known:
            raise ValueError(f"unknown setting --{path}{nearest(path, known, '--')}")
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise ValueError(f"--{path} needs a value: --{path} VALUE")
            text = remaining.pop(0)
        *parents, name = path.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = _read(path, text)
    return tree


def _read(path: str, text: str) -> Any:
    if text not in ("true", "false", "null") and not text.startswith("["):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"--{path} is given as {text!r}: not a list in JSON, such as [1, 2] ({error})"
        ) from error


def _place(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The path of an error; the name of the class that was chosen, which pydantic puts in, is no part of
    it.
    """
    path: list[str] = []
    chosen, at_choice = [model], False
    for part in location:
        if at_choice:
            at_choice = False
            continue
        path.append(str(part))
        if isinstance(part, int):  # a place in a list
            continue
        fields = [choice.model_fields[str(part)] for choice in chosen if part in choice.model_fields]
        chosen = [choice for field in fields[:1] for choice in _nested(field.annotation)]
        at_choice = len(chosen) > 1
    return path


def nearest(word: str, known: Sequence[str], mark: str = "") -> str:
    """A hint for a message: the known word that is most like a wrong one, or nothing."""
    last = word.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(word, known, n=1) or [
        item for item in known if item.rsplit(".", 1)[-1] == last
    ]
    return f"; did you mean {mark}{near[0]}?" if near else ""


def read_toml(file: Path, *, kind: str, name: str, names: Sequence[str]) -> dict[str, Any]:
    """The tree in a file that stands for one of several names.

    Args:
        file: where it should be.
        kind: what it is, for messages.
        name: what the user called it.
        names: what the user could have called it.

    Raises:
        ValueError: no such file (with the nearest name), or no TOML.
    """
    if not file.is_file():
        raise ValueError(
            f"unknown {kind} {name!r}: expected one of {', '.join(names)}, or a .toml file"
            f"{nearest(name, names)}"
        )
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid TOML: {error}") from error


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a tree with another laid over it."""
    merged = dict(base)
    for name, value in changes.items():
        old = merged.get(name)
        merged[name] = merge(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return merged


def build(model: type[Settings], tree: Mapping[str, Any], *, source: str) -> Settings:
    """Checked settings of a tree.

    Args:
        model: the settings class.
        tree: plain values.
        source: what to call the tree in a message.

    Raises:
        ValueError: one line with the path, what was given and what is expected; unknown keys with the nearest
            match.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        # an unknown key first: what is missing may just be misspelt
        first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        path = ".".join(_place(model, first["loc"]))
        if first["type"] == "extra_forbidden":
            paths = [known_path for known_path, _ in setting_paths(model)]
            known = [*paths, *sorted({known_path.rpartition(".")[0] for known_path in paths} - {""})]
            message = f"{source}: unknown key {path}{nearest(path, known)}"
        elif first["type"] == "missing":
            message = f"{source}: {path} is missing"
        elif first["type"] == "value_error":
            where = f"{source}: {path}" if path else source  # no path: the parts do not fit together
            message = f"{where}: {first['msg'].removeprefix('Value error, ')}"
        else:
            expected = first["msg"][0].lower() + first["msg"][1:]
            message = f"{source}: {path} is {first['input']!r}: {expected}"
        raise ValueError(message) from error
