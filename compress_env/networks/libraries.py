"""Networks of torchvision and timm by name, with random weights.

Both packages are imported only when a network of theirs is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from compress_env.data.official import IMAGENET, PREPARED, Preparation
from compress_env.errors import reason_of

__all__ = [
    "AUTO",
    "LIBRARIES",
    "build_timm",
    "build_torchvision",
    "choose_preparation",
    "preparation_of",
]

AUTO = "auto"
"""Prepares images as the published weights of the network expect."""
USUAL = "imagenet"
"""Prepares them as usual, with ImageNet's mean and standard deviation."""

_ONE_OUTPUT: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
}
"""Options of networks that would return more than the logits while they are trained."""
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
"""Those of timm's configurations that torchvision has too."""


def build_torchvision(name: str, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Build a classification network of `torchvision.models` as it is there.

    Args:
        name: Its name in `torchvision.models.list_models(module=torchvision.models)`.
        num_classes: Number of logits.
        image_shape: Shape of one image, (C, H, W); torchvision's networks take three channels.

    Raises:
        ValueError: If the name is unknown, or the network cannot take such images.
    """
    from torchvision import models  # only when asked for

    known = models.list_models(module=models)
    if name not in known:
        raise ValueError(f"torchvision has no network {name!r}; it has: {', '.join(known)}")
    if image_shape[0] != 3:
        raise ValueError(
            f"torchvision/{name} takes images of 3 channels, got {image_shape[0]}; timm's networks "
            "take any number"
        )
    options = _ONE_OUTPUT.get(name, {})
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **options)
    _check_images(f"torchvision/{name}", model, num_classes, image_shape)
    return model


def build_timm(name: str, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Build a network of the package `timm` for any number of channels.

    Args:
        name: Its name in `timm.list_models()`.
        num_classes: Number of logits.
        image_shape: Shape of one image, (C, H, W).

    Raises:
        ImportError: If timm is not installed.
        ValueError: If the name is unknown, or the network cannot take such images.
    """
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ImportError(f"timm/{name} needs the package timm: pip install timm") from error
    if not timm.is_model(name):
        similar = timm.list_models(f"*{name.partition('_')[0]}*")[:10]
        raise ValueError(
            f"timm has no network {name!r}; timm.list_models() lists them"
            + (f", such as {', '.join(similar)}" if similar else "")
        )
    model: nn.Module = timm.create_model(
        name, pretrained=False, num_classes=num_classes, in_chans=image_shape[0]
    )
    _check_images(f"timm/{name}", model, num_classes, image_shape)
    return model


def preparation_of(model: str) -> Preparation | None:
    """Return what timm prepares images with for the weights that it publishes of a network.

    Args:
        model: Name of a network, as in `build_model`; `timm/NAME.TAG` is of these weights,
            `timm/NAME` of timm's default ones.

    Returns:
        None for other networks, those without published weights, and those of other images.
    """
    library, _, name = model.partition("/")
    if library != "timm" or not name:
        return None
    try:
        timm = importlib.import_module("timm")
    except ImportError:  # which building the network tells
        return None
    known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if known is None or len(known.mean) != 3:
        return None
    how = known.interpolation if known.interpolation in _INTERPOLATIONS else IMAGENET.interpolation
    return Preparation(tuple(known.mean), tuple(known.std), how, known.crop_pct)


def choose_preparation(how: str, model: str, data: str) -> Preparation | None:
    """Return what images go through before a network sees them.

    Args:
        how: `"auto"`, as the published weights of the network expect; `"imagenet"`, as usual, with
            ImageNet's mean and standard deviation; or `"timm/NAME"`, as timm's weights of that
            network, whatever this one is.
        model: Name of the network, as in `build_model`.
        data: Name of the data set.

    Returns:
        None for the usual preparation, and for data sets that have their own.

    Raises:
        ValueError: If `how` is something else, timm publishes no such weights, or the data set has
            a preparation of its own.
    """
    if how == AUTO:
        return preparation_of(model)
    if data not in PREPARED:
        raise ValueError(
            f"preparation is for the data sets {' and '.join(PREPARED)}; {data} has its own"
        )
    if how == USUAL:
        return None
    found = preparation_of(how)
    if found is None:
        raise ValueError(
            f"preparation must be {AUTO}, {USUAL} or timm/NAME, a network of the package timm that "
            f"has published weights, got {how!r}"
        )
    return found


LIBRARIES: dict[str, Callable[[str, int, tuple[int, int, int]], nn.Module]] = {
    "torchvision": build_torchvision,
    "timm": build_timm,
}
"""Builders by the part of a name before the slash."""


def _check_images(
    name: str, model: nn.Module, num_classes: int, image_shape: tuple[int, int, int]
) -> None:
    """Run a network on one black image.

    Raises:
        ValueError: If it does not map such images to logits.
    """
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, *image_shape))
    except Exception as error:  # foreign code may raise anything
        size = "x".join(str(n) for n in image_shape[1:])
        raise ValueError(f"{name} cannot take images of {size}: {reason_of(error)}") from None
    finally:
        model.train()
    shape = tuple(getattr(logits, "shape", ()))
    if shape != (1, num_classes):
        raise ValueError(f"{name} returns {shape or type(logits).__name__}, not (1, {num_classes})")
