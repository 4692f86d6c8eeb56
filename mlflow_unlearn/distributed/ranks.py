"""Several ranks as one: rank 0 leads the command, and all ranks run the distributed functions that it calls.

A function that is ``@on_all_ranks`` runs on every rank with the arguments that rank 0 has given it. In there each rank
takes its `shard` of a batch, and `all_gather` gives all ranks the outputs of all: what is computed from them, a loss or
a stopping rule, is the same everywhere and the same as in a single process. Outside of such functions, and without
torchrun, there is one rank. `launch` starts the ranks.
"""

import functools
import importlib
import io
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import cloudpickle
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.spelling import spelled

P = ParamSpec("P")
R = TypeVar("R")
Item = TypeVar("Item")

PATIENCE = timedelta(days=7)
"""How long the others wait for rank 0's next call: it may train alone, or wait for a database."""


class RankLost(UnlearnError):
    """Another rank has ended; its own message says why, and `launch` shows it."""

    exit_code = 1

    def __init__(self) -> None:
        """Refer the user to the other process's message."""
        super().__init__("another process of this command has ended, and so does this one; its message follows")


class _State:
    """Of this process."""

    calls: Any = None  # the group over which calls are broadcast
    peers: Sequence[tuple[str, int]] = ()  # host and pid of each rank
    active = False  # within a function that all ranks run
    shared: list[Any] = []  # what the others have too, by position


def world() -> int:
    """How many ranks the command has."""
    return 1 if _State.calls is None else dist.get_world_size()


def size() -> int:
    """How many ranks take part in what is being computed."""
    return dist.get_world_size() if _State.active else 1


def rank() -> int:
    """Which of them this is."""
    return dist.get_rank() if _State.active else 0


def on_all_ranks(function: Callable[P, R]) -> Callable[P, R]:
    """Have all ranks run ``function`` when rank 0 calls it; its result counts on rank 0.

    Arguments are pickled. Datasets, and objects with ``stays_on_ranks = True``, are sent once: each rank has its own,
    which changes as rank 0's does.
    """

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if _State.calls is None or _State.active:
            return function(*args, **kwargs)
        with _peers_alive():
            _broadcast(_pickled((sys.path, f"{function.__module__}:{function.__qualname__}", args, kwargs)))
            with _active():
                return function(*args, **kwargs)

    return called


@contextmanager
def joined_up() -> Iterator[bool]:
    """Connect the ranks that torchrun has started, if it has; yields whether this one leads (True on a single one).

    Raises:
        RankLost: another rank failed during the work.
    """
    if "RANK" not in os.environ:
        yield True
        return
    # Object lists go over Gloo, tensors over what their device has.
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    with _peers_alive():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        _State.calls = dist.new_group(backend="gloo", timeout=PATIENCE)
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, (os.uname().nodename, os.getpid()), group=_State.calls)
        _State.peers = found
    leads = dist.get_rank() == 0
    if not leads:
        # Rank 0 decides what a signal means; the others end with it.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    try:
        yield leads
        if leads:
            with _peers_alive():
                _broadcast(b"")
        dist.destroy_process_group()
    finally:
        _State.calls = None
        _State.shared.clear()


def worker_loop() -> None:
    """Run what rank 0 calls, until it has finished."""
    with _peers_alive():
        while message := _broadcast(None):
            path, name, args, kwargs = _Unpickler(io.BytesIO(message)).load()
            sys.path.extend(entry for entry in path if entry not in sys.path)
            module, _, qualname = name.partition(":")
            function = getattr(importlib.import_module(module), qualname)
            with _active():
                function(*args, **kwargs)


def peer_has_ended() -> bool:
    """Whether a process of this command on this machine has ended."""
    here = os.uname().nodename
    return any(host == here and not _runs(pid) for host, pid in _State.peers)


def shard(items: Sequence[Item]) -> Sequence[Item]:
    """This rank's shard of a batch, in order; the whole batch where it is too small to be shared.

    Two samples each are the least: BatchNorm cannot normalise one.
    """
    start, stop = _bounds(len(items))[rank()]
    return items[start:stop]


def all_gather(part: Tensor, count: int) -> Tensor:
    """The rows of all ranks ``[count, …]``, in the order of the batch, from each one's ``part [b, …]`` of it.

    Gradients flow to the rank's own part.
    """
    bounds = _bounds(count)
    if len(part) == count:
        return part
    longest = max(stop - start for start, stop in bounds)
    own = torch.zeros(longest, *part.shape[1:], dtype=part.dtype, device=part.device)
    own[: len(part)] = part.detach()
    parts = [torch.empty_like(own) for _ in bounds]
    dist.all_gather(parts, own)
    rows = [received[: stop - start] for received, (start, stop) in zip(parts, bounds, strict=True)]
    rows[rank()] = part
    return torch.cat(rows)


def agreed(votes: Tensor) -> Tensor:
    """Where all ranks have True: bool ``[…]`` on the CPU, of bool tensors of one shape."""
    if size() == 1:
        return votes
    lowest = votes.to(torch.uint8)
    dist.all_reduce(lowest, dist.ReduceOp.MIN, group=_State.calls)
    return lowest.bool()


def all_agree(vote: bool) -> bool:
    """Whether all ranks vote True."""
    return bool(agreed(torch.tensor(vote)))


def synchronise(model: nn.Module) -> None:
    """Give all ranks the running statistics of rank 0; the weights are the same by the same gradients."""
    if size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def _bounds(count: int) -> list[tuple[int, int]]:
    ranks = size()
    if count < 2 * ranks:
        return [(0, count)] * ranks
    return [(count * n // ranks, count * (n + 1) // ranks) for n in range(ranks)]


@contextmanager
def _active() -> Iterator[None]:
    _State.active = True
    try:
        yield
    finally:
        _State.active = False


@contextmanager
def _peers_alive() -> Iterator[None]:
    """Turn a connection that broke into a sentence; a bug stays a bug."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "Connection" in str(error):
            raise RankLost from error
        raise


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def _broadcast(message: bytes | None) -> bytes:
    received = [message]
    dist.broadcast_object_list(received, 0, group=_State.calls, device=torch.device("cpu"))
    return received[0] or b""


def _pickled(content: Any) -> bytes:
    file = io.BytesIO()
    try:
        _Pickler(file).dump(content)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise UnlearnError(
            f"data or model cannot be sent to the other processes ({error}): use {spelled('processes', '1')}, or a "
            "dataset that can be pickled"
        ) from error
    return file.getvalue()


class _Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]
    """Names what the other ranks have by its position, and sends tensors of a GPU to each one's own."""

    def __init__(self, file: io.BytesIO, root: Any = None) -> None:
        super().__init__(file)
        self._root = root

    def persistent_id(self, obj: Any) -> tuple[int, bytes | None] | None:
        if isinstance(obj, type) or obj is self._root:
            return None
        if not isinstance(obj, Dataset) and getattr(obj, "stays_on_ranks", None) is not True:
            return None
        position = next((i for i, other in enumerate(_State.shared) if other is obj), None)
        if position is not None:
            return position, None
        position = len(_State.shared)
        _State.shared.append(obj)
        file = io.BytesIO()
        _Pickler(file, root=obj).dump(obj)
        return position, file.getvalue()

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor) and obj.is_cuda and not isinstance(obj, nn.Parameter):
            return _on_own_gpu, (obj.detach().cpu(),)
        return super().reducer_override(obj)


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: Any) -> Any:
        position, content = pid
        if content is not None:
            # What it contains itself has positions behind it.
            _State.shared.extend([None] * (position + 1 - len(_State.shared)))
            _State.shared[position] = _Unpickler(io.BytesIO(content)).load()
        return _State.shared[position]


def _on_own_gpu(tensor: Tensor) -> Tensor:
    return tensor.cuda()
