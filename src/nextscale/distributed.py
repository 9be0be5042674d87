"""Which device a process works on. Imports torch only when asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def choose_device(name: str | None = None) -> torch.device:
    """The named device, or the first GPU, or the CPU.

    Raises:
        ValueError: the device does not exist here.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} is not available here ({str(error).splitlines()[0]}); try cpu") from error
    return device
