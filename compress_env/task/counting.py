"""Counts the multiply-accumulates of one image, of every operation that a network carries out.

PyTorch's own counter (`torch.utils.flop_counter`) sees matrix products, convolutions and attention,
whichever module or function asks for them. Kernels that it cannot look into (fused attention and
oneDNN's LSTM on the CPU, cuDNN's recurrent layers) are taken apart while it counts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["macs_by_module", "running_one_image", "total_macs"]

_UNCOUNTED = frozenset(
    {
        "aten::_cdist_forward",
        "aten::_trilinear",
        "aten::addmv",
        "aten::addr",
        "aten::dot",
        "aten::linalg_inv_ex",
        "aten::mv",
        "torchvision::deform_conv2d",
    }
)
"""Operations that multiply and add, and that PyTorch's counter takes for free."""
_logger = logging.getLogger(__name__)


def total_macs(model: nn.Module, image: Tensor) -> int:
    """Return the multiply-accumulates of one image, of every operation.

    Args:
        model: Any network of images; left in the mode it was in.
        image: A batch of images, (b, C, H, W) float32, on the model's device; the first is run.
    """
    return sum(macs_by_module(model, image).values())


def macs_by_module(model: nn.Module, image: Tensor) -> dict[str, int]:
    """Return the multiply-accumulates of one image by the module whose own code asks for them.

    Args:
        model: Any network of images; left in the mode it was in.
        image: A batch of images, (b, C, H, W) float32, on the model's device; the first is run.

    Returns:
        Dotted names, "" being the network itself, of modules that compute any, in the order of
        their first call. What a module's children do is not counted as its own. A warning names
        operations that are left out.
    """
    counter = _Counter({module: name for name, module in model.named_modules()})
    with counter.watching(), running_one_image(model), counter:
        model(image[:1])
    for name, operation in sorted(counter.uncounted):
        _logger.warning(
            "the multiply-accumulates of %s in %s are not counted", operation, name or "the network"
        )
    return {name: macs for name, macs in counter.by_module.items() if macs}


@contextmanager
def running_one_image(model: nn.Module) -> Iterator[None]:
    """Run a network in evaluation mode, without gradients and with kernels taken apart."""
    was_training = model.training
    with ExitStack() as stack:
        stack.callback(model.train, was_training)
        stack.enter_context(torch.no_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.callback(
            torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
        )
        torch.backends.mha.set_fastpath_enabled(False)
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(_recurrent_layers_apart())
        model.eval()
        yield


@contextmanager
def _recurrent_layers_apart() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=False):
        # Its `flags` would also ask for TF32, which CPUs answer with a warning.
        set_flags = torch.backends.mkldnn.set_flags
        was_enabled, *_ = set_flags(False, _fp32_precision=None)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            set_flags(was_enabled, _fp32_precision=None)  # type: ignore[no-untyped-call]


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what PyTorch's counter says, by the module that is running."""

    def __init__(self, names: Mapping[nn.Module, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_module: dict[str, int] = {}
        self.uncounted: set[tuple[str, str]] = set()
        self._names = names
        self._running = [""]
        self._flops = FlopCounterMode(display=False)
        self._n_before = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Know which module is running."""
        with ExitStack() as stack:
            for module, name in self._names.items():
                for hook in (
                    module.register_forward_pre_hook(lambda *_, name=name: self._move(name)),
                    module.register_forward_hook(lambda *_: self._move(None), always_call=True),
                ):
                    stack.callback(hook.remove)
            stack.enter_context(self._flops)
            yield
            self._move(None)

    def _move(self, name: str | None) -> None:
        """Put down what has been counted for the module that was running, and enter or leave."""
        n_flops = self._flops.get_total_flops()
        running = self._running[-1]
        n_macs = (n_flops - self._n_before) // 2
        self.by_module[running] = self.by_module.get(running, 0) + n_macs
        self._n_before = n_flops
        if name is None:
            self._running.pop()
        else:
            self._running.append(name)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Carry out an operation, and remember it if nobody counts it."""
        if func._schema.name in _UNCOUNTED:
            self.uncounted.add((self._running[-1], func._schema.name))
        return func(*args, **(kwargs or {}))
