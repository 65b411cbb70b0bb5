"""Where the cells of a sweep are worked on: processes of this machine, or a Ray cluster.

Both work on a cell in a process of its own, and try again, from the cell's saved state, when that
process is killed. A cell that ends with an error is not tried again.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import platform
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from experiments.common.cli.command import Interrupted, interruptible, one_line
from experiments.sweep.folder import SweepFolder, Task, work

__all__ = ["LocalPool", "Outcome", "Pool", "RayPool"]

WORKERS = multiprocessing.get_context("forkserver")
"""Starts processes from one that has imported everything and done nothing: CUDA and threads, which
do not survive a fork, have not been started there, and seconds of imports are spared every cell."""
# Optimizers import the second; the last two are imported where channels are selected and cut.
PRELOAD = [
    "experiments.sweep.cells",
    "torch._dynamo",
    "sklearn.linear_model",
    "torch_pruning",
]
STOP_S = 30.0
"""Seconds that a process is given to save its state."""
CONNECT_S = 10.0
MEMORY = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "20000",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2),
    "MALLOC_TRIM_THRESHOLD_": str(1024**3),
}
"""What processes keep rather than make anew. Pruned layers come in ever new shapes, each with
kernels of its own, of which oneDNN keeps the last 1,024 otherwise. And glibc gives the memory of
every larger tensor back to the system, which clears its pages before they are used again."""
PATH_VARIABLES = ("COMPRESS_ENV_CACHE", "COMPRESS_ENV_DATA")
"""Environment variables that reach the nodes of a cluster."""


class Outcome(NamedTuple):
    """How a cell has ended."""

    name: str
    error: str | None
    """One line, or None if the cell is finished."""


class Pool(Protocol):
    """What a sweep needs of a pool."""

    place: str
    """Where cells are worked on, as the first line says it."""

    def submit(self, tasks: Sequence[Task]) -> None:
        """Take the tasks, once."""

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Wait for cells to end, at most so long, and return those that have."""

    def stop(self) -> None:
        """Stop what is still worked on, after it has had time to save its state."""


class LocalPool:
    """So many processes at a time on this machine."""

    def __init__(self, *, jobs: int, retries: int) -> None:
        """Set how many.

        Args:
            jobs: Processes at a time.
            retries: How often a cell whose process was killed is tried again.
        """
        WORKERS.set_forkserver_preload(PRELOAD)
        self._jobs, self._retries = jobs, retries
        self.place = f"{jobs} at a time on this machine"
        self._waiting: deque[Task] = deque()
        self._running: dict[ForkServerProcess, Task] = {}
        self._kills: Counter[str] = Counter()

    def submit(self, tasks: Sequence[Task]) -> None:
        """Take the tasks; they start when polled."""
        self._waiting.extend(tasks)

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Start as many as may run, and wait for some to end."""
        while self._waiting and len(self._running) < self._jobs:
            self._start(self._waiting.popleft())
        wait([process.sentinel for process in self._running], timeout_s)
        ended = [process for process in self._running if process.exitcode is not None]
        return [outcome for process in ended if (outcome := self._end(process)) is not None]

    def _start(self, task: Task) -> None:
        process = WORKERS.Process(target=_work_in_child, args=(task,), name=task.cell.name)
        self._running[process] = task
        with _inherited(task.threads):
            process.start()

    def _end(self, process: ForkServerProcess) -> Outcome | None:
        """Take a process off the list; None if its cell is to be tried again."""
        task, code = self._running.pop(process), process.exitcode
        name = task.cell.name
        process.close()
        if code == 0:
            return Outcome(name, None)
        if code == 1:
            return Outcome(name, _last_error(task))
        self._kills[name] += 1
        if self._kills[name] > self._retries:
            return Outcome(name, f"its process was killed {self._kills[name]} times")
        self._waiting.appendleft(task)
        return None

    def stop(self) -> None:
        """Send SIGTERM to all, wait for them, and kill those that do not end."""
        self._waiting.clear()
        started = [process for process in self._running if process.pid is not None]
        deadline = time.monotonic() + STOP_S
        try:
            for process in started:
                process.terminate()
            for process in started:
                process.join(max(0.0, deadline - time.monotonic()))
        finally:
            for process in started:
                process.kill()
                process.join()
            self._running.clear()


@contextmanager
def _inherited(threads: int) -> Iterator[None]:
    """Let a child start with so many threads, and deaf to Ctrl-C until it can handle it."""
    mine = {"OMP_NUM_THREADS": str(threads)}
    mine |= {name: value for name, value in MEMORY.items() if name not in os.environ}
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work_in_child(task: Task) -> None:
    """Work on a cell; the exit code is 0 if it is finished and 1 if it has failed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with interruptible():
            error = work(task)
    except Interrupted as stop:
        sys.exit(stop.exit_status)
    sys.exit(0 if error is None else 1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_S)
    os._exit(128 + signal.SIGTERM)


def _last_error(task: Task) -> str:
    records = SweepFolder(task.sweep).records(task.cell.name)
    last = records[-1] if records else {}
    return str(last.get("error", "its process ended with status 1"))


class RayPool:
    """One task per cell on a Ray cluster; Ray tries again when a node or a process dies."""

    def __init__(self, address: str, *, cpus: int, gpus: float, retries: int) -> None:
        """Connect to the cluster.

        Args:
            address: `auto`, `local`, `host:port` or `ray://host:port`.
            cpus: CPUs of a cell.
            gpus: GPUs of a cell, or a fraction of one.
            retries: How often a cell whose node or process died is tried again.

        Raises:
            ValueError: If Ray is not installed or the cluster cannot be reached.
        """
        self._ray = _import_ray()
        self.place = f"on Ray at {address!r}"
        self._refs: dict[Any, str] = {}
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": retries}
        self._options = options | {"max_calls": 1}  # a fresh process for every cell
        self._connect(address, {"env_vars": _environment(cpus)})
        self.fits = any(
            node["Alive"]
            and node["Resources"].get("CPU", 0) >= cpus
            and node["Resources"].get("GPU", 0) >= gpus
            for node in self._ray.nodes()
        )
        """Whether a node has the CPUs and GPUs for a cell, busy or not."""

    def _connect(self, address: str, runtime_env: dict[str, Any]) -> None:
        handler = signal.getsignal(signal.SIGTERM)
        try:
            _check_reachable(address)
            self._ray.init(
                address, runtime_env=runtime_env, log_to_driver=False, logging_level="WARNING"
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"cannot reach Ray at {address!r}: {one_line(error)}") from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has put its own in place

    def submit(self, tasks: Sequence[Task]) -> None:
        """Hand all tasks to the cluster."""
        remote = self._ray.remote(**self._options)(_work_on_node)
        for task in tasks:
            self._refs[remote.options(name=task.cell.name).remote(task)] = task.cell.name

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Wait, and return what has ended meanwhile."""
        time.sleep(timeout_s)  # here and not inside Ray, which signal handlers cannot leave
        refs = list(self._refs)
        try:
            ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
            return [self._end(ref) for ref in ready]
        except SystemError as error:
            raise error.__cause__ or error from None

    def _end(self, ref: Any) -> Outcome:
        name = self._refs.pop(ref)
        try:
            return Outcome(name, self._ray.get(ref))
        except self._ray.exceptions.RayError as error:
            return Outcome(name, one_line(error))

    def stop(self) -> None:
        """Interrupt what runs, wait for it, and leave the cluster."""
        try:
            refs = list(self._refs)
            for ref in refs:
                self._ray.cancel(ref)
            if refs:
                self._ray.wait(refs, num_returns=len(refs), timeout=STOP_S)
        finally:
            self._ray.shutdown()


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise ValueError("--ray needs Ray: pip install 'compress-env[ray]'") from None


def _check_reachable(address: str) -> None:
    """Check that somebody listens; Ray itself would try for many minutes.

    Raises:
        OSError: If nobody does.
    """
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    parts = re.fullmatch(r"(?:ray://)?(.+):(\d+)", address)
    if parts is not None:
        socket.create_connection((parts[1], int(parts[2])), timeout=CONNECT_S).close()


def _environment(cpus: int) -> dict[str, str]:
    """Return the environment of the workers: threads, and where data and baselines are."""
    paths = {name: os.environ[name] for name in PATH_VARIABLES if name in os.environ}
    absolute = {name: str(Path(path).absolute()) for name, path in paths.items()}
    memory = {name: os.environ.get(name, value) for name, value in MEMORY.items()}
    return {"OMP_NUM_THREADS": str(cpus)} | memory | absolute


def _work_on_node(task: Task) -> str | None:
    """Work on a cell in a worker process of Ray, which dies with its node."""
    node_id = _import_ray().get_runtime_context().get_node_id()
    return work(task, f"{platform.node()}/{node_id[:12]}")
