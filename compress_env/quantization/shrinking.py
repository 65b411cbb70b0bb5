"""Loading the state of a pruned network into the architecture that it was pruned from."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from compress_env.networks.state_dicts import Weights, load_weights

__all__ = ["load_into"]


def load_into(model: nn.Module, state: dict[str, Tensor], *, assign: bool = False) -> None:
    """Shrink a model's layers to the shapes of a pruned network's state, and load it.

    ``Conv2d`` (depthwise ones too), ``Linear``, batch-norm, instance-norm and ``PReLU`` layers take
    the stored numbers of channels; everything else must fit as it is. On an error the model is
    unchanged.

    Args:
        model: The unpruned architecture, changed in place; on the "meta" device it costs nothing.
        state: State dict of the pruned network.
        assign: Whether the model takes the tensors themselves instead of their values.

    Raises:
        ValueError: If a name is missing or left over, or a shape is not a shrunk one; the message
            names the first.
    """
    _check_names(set(model.state_dict()), set(state))
    for name, module in model.named_modules():
        _check_module(module, name, _own_state(module, name, state))
    for name, module in model.named_modules():
        _shrink(module, _own_state(module, name, state))
    load_weights(model, Weights(state, {}), assign=assign)


def _check_names(expected: set[str], got: set[str]) -> None:
    for name in sorted(expected ^ got):
        kind = "lacks" if name in expected else "has, but the model does not,"
        raise ValueError(f"the stored network {kind} {name!r}")


def _own_state(module: nn.Module, name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of a state that a module owns itself, under its local names."""
    prefix = f"{name}." if name else ""
    return {key: state[prefix + key] for key in _own_tensors(module) if prefix + key in state}


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's own parameters and buffers."""
    parameters = module.named_parameters(recurse=False, remove_duplicate=False)
    buffers = module.named_buffers(recurse=False, remove_duplicate=False)
    return {**dict(parameters), **dict(buffers)}


def _check_module(module: nn.Module, name: str, stored: dict[str, Tensor]) -> None:
    """Raise unless each stored tensor is a shrunk version of the module's, all by one count."""
    own = _own_tensors(module)
    counts = {len(stored[key]) for key in stored if _n_free_dims(module, key) and stored[key].dim()}
    for key, tensor in stored.items():
        free = _n_free_dims(module, key)
        fits = (
            tensor.dim() == own[key].dim()
            and tensor.shape[free:] == own[key].shape[free:]
            and all(0 < s <= o or s == o for s, o in zip(tensor.shape, own[key].shape, strict=True))
            and (not free or (len(counts) == 1 and _fits_groups(module, len(tensor))))
        )
        if not fits:
            full_name = f"{name}.{key}" if name else key
            raise ValueError(
                f"{full_name}: expected a shape that {tuple(own[key].shape)} can shrink to, "
                f"got {tuple(tensor.shape)}"
            )


def _n_free_dims(module: nn.Module, key: str) -> int:
    """Return how many leading dimensions of a module's tensor may shrink."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return {"weight": 2, "bias": 1}.get(key, 0)
    if isinstance(module, _NormBase | nn.PReLU):
        return int(key in ("weight", "bias", "running_mean", "running_var"))
    return 0


def _is_depthwise(module: nn.Conv2d) -> bool:
    return module.groups == module.in_channels > 1


def _fits_groups(module: nn.Module, n_outputs: int) -> bool:
    """Return whether a convolution can have that many output channels in its groups."""
    if not isinstance(module, nn.Conv2d):
        return True
    if _is_depthwise(module):
        return n_outputs % (module.out_channels // module.groups) == 0
    return n_outputs % module.groups == 0


def _shrink(module: nn.Module, stored: dict[str, Tensor]) -> None:
    """Give a module's tensors the stored shapes, and its attributes the stored counts."""
    if isinstance(module, nn.Conv2d) and "weight" in stored:
        _set_conv_counts(module, stored["weight"])
    elif isinstance(module, nn.Linear) and "weight" in stored:
        module.out_features, module.in_features = stored["weight"].shape
    elif isinstance(module, _NormBase) and stored:
        free = [tensor for key, tensor in stored.items() if _n_free_dims(module, key)]
        module.num_features = max(map(len, free), default=module.num_features)
    elif isinstance(module, nn.PReLU) and stored:
        module.num_parameters = len(stored["weight"])
    for key, tensor in _own_tensors(module).items():
        if key in stored and tensor.shape != stored[key].shape:
            empty = tensor.detach().new_empty(stored[key].shape)
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(
                module, key, nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
            )


def _set_conv_counts(module: nn.Conv2d, weight: Tensor) -> None:
    """Set channels and groups from a weight of shape (N, C / groups, kh, kw)."""
    if _is_depthwise(module):
        module.groups = len(weight) * module.groups // module.out_channels
    module.out_channels = len(weight)
    module.in_channels = weight.shape[1] * module.groups
