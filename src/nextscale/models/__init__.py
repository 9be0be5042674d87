"""The models that come with the package, by name, and the way from what a user typed to a model folder."""

from __future__ import annotations

import difflib
from pathlib import Path

from nextscale.models.hub import HUB, fetch_model, hub_name

_HOME = Path(__file__).parent


def bundled_models() -> tuple[str, ...]:
    """Names of the bundled models."""
    return tuple(sorted(item.parent.name for item in _HOME.glob("*/config.json")))


def is_model(name: str) -> bool:
    """Whether a name that may also be one of images is that of a model; a bare ``owner/name`` is not."""
    here = name in bundled_models() or (Path(name).expanduser() / "config.json").is_file()
    return here or name.startswith(HUB)


def find_model(
    model: str | Path, *, revision: str | None = None, token: str | bool | None = None,
    cache_dir: str | Path | None = None, local_files_only: bool = False,
) -> Path:  # fmt: skip
    """The folder of a model: one that is here, a bundled one, or one of the hub, which is fetched.

    Args:
        model: a folder, the name of a bundled model, or ``[hub:]owner/name[@revision]``; in this order.
        revision: see `fetch_model`, as for the others; none of them has an effect on a folder that is here.
        token: likewise.
        cache_dir: likewise.
        local_files_only: likewise.

    Raises:
        ValueError: there is none, or it could not be fetched.
    """
    place = Path(model).expanduser()
    if place.is_dir():
        return _not_of_hub(place, revision)
    names = bundled_models()
    if str(model) in names:
        return _not_of_hub(_HOME / str(model), revision)
    found = hub_name(str(model))
    if found is not None:
        repo_id, named = found
        if revision and named and revision != named:
            raise ValueError(f"{model} names revision {named}, revision={revision!r} another: give one")
        return fetch_model(
            repo_id, revision=revision or named, token=token, cache_dir=cache_dir,
            local_files_only=local_files_only,
        )  # fmt: skip
    near = difflib.get_close_matches(str(model), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"no model {str(model)!r}: expected a model folder or one of {', '.join(names) or 'none'}, or "
        f"hub:OWNER/NAME{hint}"
    )


def _not_of_hub(folder: Path, revision: str | None) -> Path:
    if revision is not None:
        raise ValueError(f"revision {revision!r} has no effect on the local folder {folder}: leave it out")
    return folder
