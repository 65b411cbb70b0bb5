"""What a network that is given has to be: no wrapper, with stored, finite weights of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode

__all__ = ["check_finite", "check_independent", "check_state", "check_stored", "unwrapped"]

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
_REMEDIES: dict[type, str] = {
    BasePruningMethod: "torch.nn.utils.prune.remove({module}, {tensor!r})",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm({module}, {tensor!r})",
    WeightNorm: "torch.nn.utils.remove_weight_norm({module}, {tensor!r})",
}
"""What makes an ordinary parameter of one that a hook computes, by the type of the hook."""


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network that `torch.compile`, `DataParallel` and the like wrap, whole or in part.

    Args:
        model: Any network; left as it is.

    Returns:
        `model` where nothing wraps it or a part of it. The network inside where it is wrapped
        itself. Where a part is, another module with the same parameters and buffers.
    """
    while (inner := _inside(model)) is not None:
        model = inner
    if all(_inside(module) is None for module in model.modules()):
        return model
    tensors = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    plain = copy.deepcopy(model, tensors)
    while (name := _wrapped_part(plain)) is not None:
        plain.set_submodule(name, unwrapped(plain.get_submodule(name)))
    return plain


def check_state(model: nn.Module) -> None:
    """Check that a network's state is all there is to it, and of types that can be compressed.

    Raises:
        ValueError: If a parameter is computed by a hook from others, in the style of old PyTorch,
            or has a hook itself; if one is not of float32, or something in the state is no real
            tensor. The message names the first and says what to do.
    """
    check_stored(model)
    _check_gradient_hooks(model)
    _check_types(model)


def check_stored(model: nn.Module) -> None:
    """Check that no parameter is computed by a hook from others, in the style of old PyTorch.

    Raises:
        ValueError: If one is; the message says how to undo it.
    """
    for name, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            kind = next((kind for kind in _REMEDIES if isinstance(hook, kind)), None)
            if kind is None:
                continue
            tensor = getattr(hook, "name", None) or getattr(hook, "_tensor_name", "weight")
            place = f"model.get_submodule({name!r})" if name else "model"
            remedy = _REMEDIES[kind].format(module=place, tensor=tensor)
            full_name = f"{name}.{tensor}".lstrip(".")
            raise ValueError(
                f"{full_name!r} is computed by a hook ({type(hook).__name__}) from other tensors: "
                f"make it an ordinary parameter first: {remedy}"
            )


def _check_gradient_hooks(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ValueError(
                f"the parameter {name!r} has a hook, which copies of the network would lose: "
                "remove it, or put a hook on the module that owns the parameter"
            )


def _check_types(model: nn.Module) -> None:
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{name!r} in the state of the network is no tensor ({type(value).__name__}), so "
                "that no file keeps it: leave get_extra_state() out"
            )
        if value.is_complex():
            raise ValueError(
                f"{name!r} of the network is complex: keep its real and imaginary parts in one "
                "real tensor, see torch.view_as_real"
            )
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ValueError(
                f"{name!r} of the network is {parameter.dtype}, expected torch.float32: call "
                "float() on the network first"
            )


def check_independent(model: nn.Module, original: nn.Module, run: Callable[[], object]) -> None:
    """Check that a copy of a network computes with its own parameters and buffers alone.

    A function kept in an attribute is shared by all copies, and with it what it has captured.

    Args:
        model: The copy.
        original: What it is a copy of.
        run: Runs the copy.

    Raises:
        ValueError: If the copy uses a tensor of the original.
    """
    own = {id(tensor) for tensor in chain(model.parameters(), model.buffers())}
    named = chain(original.named_parameters(), original.named_buffers())
    foreign = {id(tensor): name for name, tensor in named if id(tensor) not in own}
    with _Used(foreign) as used:
        run()
    if used.first is not None:
        raise ValueError(
            f"a copy of the network uses {used.first!r} of the original, through a function that "
            "has captured it, as a lambda in an attribute does: make it a method"
        )


class _Used(TorchFunctionMode):
    """Notes the name of the first of some tensors that an operation is given inside the block."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self.first: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            for each in value if isinstance(value, list | tuple) else (value,):
                if self.first is None and isinstance(each, Tensor):
                    self.first = self._names.get(id(each))
        return func(*args, **(kwargs or {}))


def check_finite(model: nn.Module) -> None:
    """Check that no parameter has NaN or infinite values, and no buffer NaN.

    Buffers may be infinite, as masks of attention are.

    Raises:
        ValueError: If one has; the message names the first.
    """
    named = list(_faulty(model))
    bad = torch.stack([fault for _, fault in named]).tolist() if named else []
    first = next((name for (name, _), is_bad in zip(named, bad, strict=True) if is_bad), None)
    if first is not None:
        raise ValueError(f"{first!r} of the network has NaN or infinite values")


def _faulty(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the name of each floating tensor, and whether it has values that it must not have."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            yield name, ~torch.isfinite(parameter.detach()).all()
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            yield name, torch.isnan(buffer).any()


def _inside(module: nn.Module) -> nn.Module | None:
    """Return the network that a module only wraps, None where it is one itself."""
    if isinstance(module, _PARALLEL):
        return module.module
    # `torch.compile`'s wrapper, whose class is only imported by who compiles.
    return dict(module.named_children()).get("_orig_mod")


def _wrapped_part(model: nn.Module) -> str | None:
    return next((name for name, part in model.named_modules() if _inside(part) is not None), None)
