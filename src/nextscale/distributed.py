"""Which device a process works on, and putting modules there. Imports torch only when asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

    Module = TypeVar("Module", bound=torch.nn.Module)


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
        torch.zeros(1, device=device).item()  # the meta device holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device {name!r} is not available here ({str(error).splitlines()[0]}); try cpu"
        ) from error
    return device


def place(module: Module, device: torch.device) -> Module:
    """Move a module, its convolution kernels laid out channels last, which is how CPUs and GPUs like them."""
    import torch

    module.to(device)
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module
