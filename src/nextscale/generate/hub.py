"""Model folders to the Hugging Face hub. The way back is in `nextscale.models.hub`. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from nextscale.models.hub import HUB_FILES, hub_reason


class Push(TypedDict, total=False):
    """How a model goes to the hub."""

    private: bool | None
    commit_message: str | None
    revision: str | None
    token: str | None


def push_folder(
    folder: Path, repo_id: str, *, private: bool | None = None, commit_message: str | None = None,
    revision: str | None = None, token: str | None = None,
) -> str:  # fmt: skip
    """Upload the files of a model folder in one commit.

    Args:
        folder: of the model.
        repo_id: ``owner/name``, or a name alone, which is then your own; it is made where there is none.
        private: whether a new repository can be seen by you alone; None: what your account does.
        commit_message: what is said about the change.
        revision: a branch that exists; None: main.
        token: of an account that may write; None: what ``hf auth login`` left.

    Returns:
        The address of the commit.

    Raises:
        ValueError: no access, no network, or the package huggingface_hub is missing.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ValueError(
            f"pushing to {repo_id} needs the package huggingface_hub: pip install 'nextscale[hub]'"
        ) from error
    try:
        api = HfApi(token=token)
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo.repo_id, folder_path=folder, allow_patterns=list(HUB_FILES),
            revision=revision, commit_message=commit_message or "Upload a nextscale model",
        )  # fmt: skip
    except Exception as error:  # no network, no access, a bad name: the package has an error for each
        raise ValueError(
            f"{repo_id} could not be pushed ({hub_reason(error)}): check the name, the network and the token "
            "(hf auth login)"
        ) from error
    return str(commit.commit_url)
