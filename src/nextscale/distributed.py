"""Which device a process works on, putting modules there, and the processes that train one model together.

Special here: torch is imported only when asked. A process by itself is the first of one: everything that
several would exchange is then left as it is. What may take long (making tokens, evaluating) or go wrong on
one rank only is settled in words, over a group of its own on CPUs that waits for a day; numbers are summed in
flat buckets over the group that torchrun describes. An error inside `together` ends all ranks alike, so none
waits for one that is gone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Module = TypeVar("Module", bound=torch.nn.Module)

Item = TypeVar("Item")

_BUCKET_BYTES = 2**27
_LONGEST_WAIT = timedelta(days=1)
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class SharedError(ValueError):
    """An error that every rank raises, whichever met it; the first rank tells people."""


class SharedBug(RuntimeError):
    """The same for an error that is not meant for users; the rank that met it names it as the cause."""


@dataclass(frozen=True)
class Distributed:
    """This process among those that train together; by itself it is the first of one."""

    rank: int
    world_size: int
    device: torch.device
    words: Any = field(default=None, repr=False)  #: the group that texts and flags go over

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes files and speaks to people."""
        return self.rank == 0

    def part(self, batch_size: int, *, accumulate: int = 1) -> slice:
        """Which samples of a batch are this rank's.

        Raises:
            ValueError: the batch cannot be cut into equal parts.
        """
        if batch_size % (self.world_size * accumulate):
            raise ValueError(
                f"loop.batch_size {batch_size} cannot be cut into {self.world_size} processes x "
                f"loop.accumulate {accumulate} equal parts: give a multiple of {self.world_size * accumulate}"
            )
        size = batch_size // self.world_size
        return slice(self.rank * size, (self.rank + 1) * size)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, equal to the bit on all of them.

        Shapes, types and order must be those of every rank. Tensors of a type travel together.
        """
        if self.world_size == 1:
            return
        import torch

        with torch.no_grad():
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.reshape(-1).to(self.device) for tensor in bucket])
                torch.distributed.all_reduce(flat)
                parts = flat.split([tensor.numel() for tensor in bucket])
                for tensor, part in zip(bucket, parts, strict=True):
                    tensor.copy_(part.view(tensor.shape))

    def take_first_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by that of the first rank."""
        if self.world_size == 1:
            return
        import torch

        with torch.no_grad():
            for tensor in tensors:
                given = tensor.reshape(-1).to(self.device, copy=True)
                torch.distributed.broadcast(given, src=0)
                tensor.copy_(given.view(tensor.shape))

    def agree(self, flag: bool) -> bool:
        """Whether any rank says yes. Waits for all of them."""
        if self.world_size == 1:
            return flag
        import torch

        votes = torch.tensor([int(flag)])
        torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX, group=self.words)
        return bool(votes)

    def gather(self, text: str) -> list[str]:
        """The text of every rank, by rank."""
        if self.world_size == 1:
            return [text]
        import torch

        data = text.encode()
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        torch.distributed.all_gather(lengths, torch.tensor([len(data)]), group=self.words)
        longest = max(1, *(int(length) for length in lengths))
        mine = torch.tensor(list(data.ljust(longest)), dtype=torch.uint8)
        texts = [torch.empty_like(mine) for _ in range(self.world_size)]
        torch.distributed.all_gather(texts, mine, group=self.words)
        return [
            bytes(given[: int(length)].tolist()).decode()
            for given, length in zip(texts, lengths, strict=True)
        ]

    def of_first(self, value: Item) -> Item:
        """The first rank's value, which JSON can hold."""
        return value if self.world_size == 1 else json.loads(self.gather(json.dumps(value))[0])

    def check_same(self, text: str, *, name: str) -> None:
        """Raise SharedError unless all ranks give the same text."""
        texts = self.gather(text)
        for rank, other in enumerate(texts):
            if other != texts[0]:
                raise SharedError(f"{name} differ: rank 0 has {texts[0]}, rank {rank} has {other}")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block on every rank and wait for all of them; what one of them raises ends it everywhere.

        Raises:
            SharedError: with the text of the first rank that raised.
            SharedBug: that error is neither a ValueError nor an OSError.
        """
        if self.world_size == 1:
            yield
            return
        mine: Exception | None = None
        try:
            yield
        except (SharedError, SharedBug):  # the others raise it too
            raise
        except Exception as error:
            mine = error
        if not self.agree(mine is not None):
            return
        texts = [json.loads(text) for text in self.gather(json.dumps(_in_words(mine, self.rank)))]
        for_users, text = next(given for given in texts if given)
        raise (SharedError if for_users else SharedBug)(text) from mine

    def each(self, items: Iterator[Item]) -> Generator[Item, None, None]:
        """Items of which every rank has as many; what making one of them raises is raised on all ranks."""
        try:
            while True:
                with self.together():
                    item = next(items, None)
                if item is None:
                    return
                yield item
        finally:
            if isinstance(items, Generator):
                items.close()


def _in_words(error: Exception | None, rank: int) -> tuple[bool, str] | None:
    """Whether an error is meant for users, and what it says."""
    if isinstance(error, ValueError | OSError):
        return True, str(error)
    return None if error is None else (False, f"rank {rank} failed: {error!r}")


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The same tensors, those of a type together, up to a size."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for alike in by_type.values():
        bucket: list[Tensor] = []
        for tensor in alike:
            if bucket and sum(item.nbytes for item in bucket) + tensor.nbytes > _BUCKET_BYTES:
                yield bucket
                bucket = []
            bucket.append(tensor)
        yield bucket


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


def num_processes() -> int:
    """How many processes torchrun says there are; 1 where it says nothing.

    Raises:
        ValueError: what it says is incomplete.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"WORLD_SIZE {text!r} is no number of processes: start with torchrun, or unset it")
    missing = [name for name in _VARIABLES if name not in os.environ]
    if int(text) > 1 and missing:
        raise ValueError(
            f"WORLD_SIZE is {text}, but {', '.join(missing)} is not set: start with "
            f"torchrun --nproc-per-node {text} -m nextscale.cli ..., or unset WORLD_SIZE for one process"
        )
    return int(text)


@contextmanager
def joined(device: str | None = None) -> Iterator[Distributed]:
    """Be one of the processes that torchrun started, while the block runs; without torchrun, be alone.

    Args:
        device: ``cpu``, or ``cuda``, which is the GPU of this process's number on this machine; None: a GPU
            where there is one.

    Raises:
        ValueError: no such device, or the others are not found.
    """
    world_size = num_processes()
    if world_size == 1:
        yield Distributed(0, 1, choose_device(device))
        return
    import torch

    chosen = _device_of_rank(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    try:
        torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        words = torch.distributed.new_group(backend="gloo", timeout=_LONGEST_WAIT)
    except RuntimeError as error:
        raise ValueError(
            f"rank {os.environ['RANK']} cannot reach the others at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} ({str(error).splitlines()[0]}): check that all of them are started "
            "and that this address is reachable; GLOO_SOCKET_IFNAME names the network card"
        ) from error
    try:
        yield Distributed(torch.distributed.get_rank(), world_size, chosen, words)
        # who leaves while a thread of gloo still lets go of a tensor may be aborted
        with suppress(RuntimeError):  # another one has failed, and says so itself
            torch.distributed.barrier(words)
    finally:
        torch.distributed.destroy_process_group()


def _device_of_rank(name: str | None) -> torch.device:
    """The device of one of several processes. Raises ValueError."""
    import torch

    if name is not None and name not in ("cpu", "cuda"):
        raise ValueError(
            f"device {name!r} with several processes: give cpu, or cuda, which is one GPU for each process"
        )
    if name == "cpu" or not (name or torch.cuda.is_available()):
        return torch.device("cpu")
    number = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available() and number >= torch.cuda.device_count():
        raise ValueError(
            f"process {number} of this machine finds {torch.cuda.device_count()} GPUs: give torchrun "
            f"--nproc-per-node {torch.cuda.device_count()}, or nextscale --device cpu"
        )
    return choose_device(f"cuda:{number}")
