"""What a process is set to, and whether a change of it is noticed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from compress_env.store.process import describe_process

CPU = torch.device("cpu")


@contextmanager
def switched(set_to: Callable[[Any], object], value: Any, before: Any) -> Iterator[None]:
    set_to(value)
    try:
        yield
    finally:
        set_to(before)


@contextmanager
def hooked(register: Callable[..., Any], hook: Callable[..., Any]) -> Iterator[None]:
    handle = register(hook)
    try:
        yield
    finally:
        handle.remove()


def nothing(*_: Any) -> None:
    pass


def half(_: Any, __: Any, out: Tensor) -> Tensor:
    return out / 2


class FunctionMode(TorchFunctionMode):
    pass


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    pass


def set_matmul(value: str) -> None:
    torch.backends.mkldnn.matmul.fp32_precision = value  # type: ignore[attr-defined]


CHANGES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "threads": lambda: switched(torch.set_num_threads, 3, torch.get_num_threads()),
    "flush": lambda: switched(torch.set_flush_denormal, True, False),
    "deterministic": lambda: switched(torch.use_deterministic_algorithms, True, False),
    "precision": lambda: switched(torch.set_float32_matmul_precision, "medium", "highest"),
    "mkldnn precision": lambda: switched(set_matmul, "bf16", "ieee"),
    "dtype": lambda: switched(torch.set_default_dtype, torch.float64, torch.float32),
    "mkldnn": lambda: switched(torch.backends.mkldnn.set_flags, False, True),
    "nnpack": lambda: torch.backends.nnpack.flags(enabled=False),
    "autocast": lambda: torch.autocast("cpu"),
    "autocast to": lambda: torch.autocast("cpu", torch.float16),
    "device": lambda: torch.device("meta"),
    "anomalies": torch.autograd.detect_anomaly,
    "attention": lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    "numpy": lambda: np.errstate(all="raise"),
    "forward": lambda: hooked(modules.register_module_forward_hook, half),
    "another forward": lambda: hooked(modules.register_module_forward_hook, nothing),
    "before forward": lambda: hooked(modules.register_module_forward_pre_hook, nothing),
    "backward": lambda: hooked(modules.register_module_full_backward_hook, nothing),
    "before backward": lambda: hooked(modules.register_module_full_backward_pre_hook, nothing),
    "new parameters": lambda: hooked(modules.register_module_parameter_registration_hook, nothing),
    "before steps": lambda: hooked(optimizers.register_optimizer_step_pre_hook, nothing),
    "functions": FunctionMode,
    "operations": DispatchMode,
    "saved tensors": lambda: torch.autograd.graph.saved_tensors_hooks(nn.Identity(), nn.Identity()),
}


@pytest.fixture(scope="module", autouse=True)
def settled() -> None:
    """Leave behind what PyTorch does not take back: a precision once set is never unset."""
    for name in ("precision", "mkldnn precision", "mkldnn"):
        with CHANGES[name]():
            pass


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", CHANGES)
def test_every_switch_is_noticed_and_so_is_its_way_back(name: str) -> None:
    before = describe_process(CPU)
    with CHANGES[name]():
        changed = describe_process(CPU)
        again = describe_process(CPU)
    assert changed != before
    assert changed == again
    assert changed.name() != before.name()
    assert describe_process(CPU) == before
    assert describe_process(CPU).name() == before.name()


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_no_two_switches_have_one_name() -> None:
    names = [describe_process(CPU).name()]
    for change in CHANGES.values():
        with change():
            names.append(describe_process(CPU).name())
    assert len(set(names)) == len(names)


def test_flushing_is_told_of_every_thread() -> None:
    with switched(torch.set_num_threads, 2, torch.get_num_threads()):
        assert describe_process(CPU).switches["flushes"] == [False] * 3
        with switched(torch.set_flush_denormal, True, False):
            assert sys.float_info.min / 2 == 0.0
            assert describe_process(CPU).switches["flushes"][:2] == [True, True]


def test_what_cannot_be_identified_has_a_new_name_each_time() -> None:
    generator = torch.Generator()

    def noisy(_: Any, __: Any, out: Tensor) -> Tensor:
        return out + torch.rand(out.shape, generator=generator)

    with hooked(modules.register_module_forward_hook, noisy):
        one, other = describe_process(CPU), describe_process(CPU)
        assert one == other
        assert one.name() != one.name()
        assert one.name() != other.name()


def test_it_takes_well_below_a_millisecond() -> None:
    describe_process(CPU)
    seconds = []
    for _ in range(20):
        start = perf_counter()
        describe_process(CPU).name()
        seconds.append(perf_counter() - start)
    assert min(seconds) < 5e-4
