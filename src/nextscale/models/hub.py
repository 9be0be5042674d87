"""Model folders from the Hugging Face hub.

Special here: only the files of a model folder, its signature and its provenance are ever fetched, none of
which can be executed. A bare ``owner/name`` is taken for a model of the hub only where no folder ``owner``
lies here, since somebody who mistypes ``runs/prior`` shall not get a stranger's model; ``hub:owner/name``
leaves no doubt.
"""

from __future__ import annotations

import re
from pathlib import Path

#: Says that a name is one of the hub.
HUB = "hub:"
#: What makes a model folder.
MODEL_FILES = ("config.json", "tokenizer.safetensors", "prior.safetensors", "README.md")
#: The signature over them, where there is one (`nextscale.integrity.signatures`).
SIGNATURE = "model.sig"
#: What says how it was made, where anything does (`nextscale.integrity.statement`).
PROVENANCE = "provenance.json"
#: All that is fetched and pushed.
HUB_FILES = (*MODEL_FILES, SIGNATURE, PROVENANCE)

_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")


def hub_name(model: str) -> tuple[str, str | None] | None:
    """``[hub:]owner/name[@revision]`` -> the repository and the revision; None where a path is meant.

    Raises:
        ValueError: it starts with ``hub:`` and does not go on like this.
    """
    marked = model.startswith(HUB)
    found = _NAME.fullmatch(model.removeprefix(HUB))
    if found is None and marked:
        raise ValueError(
            f"{model!r} names no model of the hub: expected {HUB}OWNER/NAME or {HUB}OWNER/NAME@REVISION"
        )
    if found is None or (not marked and Path(model).parent.exists()):
        return None
    return found["repo"], found["revision"]


def fetch_model(
    repo_id: str, *, revision: str | None = None, token: str | bool | None = None,
    cache_dir: str | Path | None = None, local_files_only: bool = False,
) -> Path:  # fmt: skip
    """The folder in which a model of the hub lies after it was fetched, or was there already.

    Args:
        repo_id: ``owner/name``.
        revision: a branch, tag or commit; None: the main branch.
        token: of the account that may read it; None: the one that `hf auth login` left; False: none.
        cache_dir: where fetched models are kept; None: where all programs of Hugging Face keep theirs.
        local_files_only: take what was fetched before, ask nobody.

    Raises:
        ValueError: no such model, no access, no network, or the package huggingface_hub is missing.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(
            f"{repo_id} needs the package huggingface_hub: pip install 'nextscale[hub]', or "
            "give a local folder"
        ) from error
    try:
        place = snapshot_download(
            repo_id, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only,
            allow_patterns=list(HUB_FILES),
        )  # fmt: skip
    except Exception as error:  # no network, no such model, no access: the package has an error for each
        raise ValueError(
            f"{repo_id} could not be fetched ({hub_reason(error)}): {_advice(local_files_only)}"
        ) from error
    return Path(place)


def _advice(local_files_only: bool) -> str:
    if local_files_only:
        return "it was never fetched to this cache_dir; allow the network, or give a local folder"
    return "check the name, the revision and the network, or give a local folder"


def hub_reason(error: Exception) -> str:
    """What huggingface_hub complains of, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
