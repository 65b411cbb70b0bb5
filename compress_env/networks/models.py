"""Named networks, the recipes that train them, and their cached baselines."""

import functools
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from compress_env.data.bundle import DataBundle
from compress_env.names import check_name
from compress_env.networks.checkpoints import (
    cache_dir,
    cache_lock,
    load_checkpoint,
    save_checkpoint,
    write_to_cache,
)
from compress_env.networks.dense import densenet_small
from compress_env.networks.libraries import LIBRARIES
from compress_env.networks.mobile import mobilenet_v1, mobilenet_v2_cifar, mobilenet_v2_narrow
from compress_env.networks.plain import (
    alexnet_small,
    cnn4,
    cnn4_softplus,
    lenet5,
    lenet5_softplus,
    vgg8,
    vgg16,
    vgg19,
)
from compress_env.networks.resnet import (
    resnet18_cifar,
    resnet20,
    resnet20_padded,
    resnet56,
    resnet56_padded,
    resnet110,
    resnet110_padded,
)
from compress_env.networks.training import Recipe, train_by_recipe
from compress_env.seeding import global_seed

__all__ = [
    "MODELS",
    "RECIPES",
    "Architecture",
    "Recipe",
    "build_model",
    "check_model_name",
    "load_baseline",
    "load_checkpoint",
    "save_checkpoint",
    "train_by_recipe",
]

SHIPPED = Path(__file__).with_name("baselines")
"""Networks that their recipes have led to, of the named tasks. Rounding differs from processor to
processor, so that training again gives another network: these let everybody start from the same."""
ANY_COPY = {("resnet20", "cifar10"): "resnet20-cifar10-jpeg.safetensors"}
"""Shipped networks for whatever copy of the images is there. This one was trained on a copy of
CIFAR-10 that has been through JPEG."""
_logger = logging.getLogger(__name__)


class Architecture(NamedTuple):
    """What `build_model` has built a network from; the network's attribute `architecture`."""

    name: str
    """A key of `MODELS`, or `torchvision/NAME` or `timm/NAME`."""
    num_classes: int
    """Number of logits."""
    image_shape: tuple[int, int, int]
    """Shape of one image, (C, H, W)."""


MODELS: dict[str, Callable[[int, tuple[int, int, int]], nn.Module]] = {
    "lenet5": lenet5,
    "lenet5_softplus": lenet5_softplus,
    "cnn4": cnn4,
    "cnn4_softplus": cnn4_softplus,
    "alexnet_small": alexnet_small,
    "vgg8": vgg8,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "resnet18_cifar": resnet18_cifar,
    "resnet20": resnet20,
    "resnet56": resnet56,
    "resnet110": resnet110,
    "resnet20_padded": resnet20_padded,
    "resnet56_padded": resnet56_padded,
    "resnet110_padded": resnet110_padded,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2_narrow": mobilenet_v2_narrow,
    "mobilenet_v2_cifar": mobilenet_v2_cifar,
    "densenet_small": densenet_small,
}
"""Builders by name: (num_classes, image_shape) -> network with random weights.

Besides these, `torchvision/NAME` and `timm/NAME` are the networks of those packages.
"""

RECIPES: dict[tuple[str, str], Recipe] = {
    ("lenet5", "digits"): Recipe(epochs=30, batch_size=32, label_smoothing=0.1),
    ("lenet5", "mnist"): Recipe(epochs=8),
    ("lenet5", "fashion_mnist"): Recipe(epochs=12),
    ("lenet5_softplus", "digits"): Recipe(epochs=40, batch_size=32, label_smoothing=0.1),
    ("lenet5_softplus", "mnist"): Recipe(epochs=8),
    ("cnn4_softplus", "digits"): Recipe(epochs=30, batch_size=32, label_smoothing=0.1),
    ("cnn4_softplus", "mnist"): Recipe(epochs=5),
    ("vgg8", "digits16"): Recipe(epochs=15, batch_size=32),
    ("resnet20", "digits16"): Recipe(epochs=20, batch_size=32),
    ("mobilenet_v2_narrow", "digits16"): Recipe(epochs=20, batch_size=32),
    ("densenet_small", "digits16"): Recipe(epochs=10, batch_size=32),
    ("lenet5", "digits32"): Recipe(epochs=45, batch_size=32, label_smoothing=0.1),
    ("vgg8", "digits8"): Recipe(epochs=30, batch_size=32),
    ("resnet20", "digits8"): Recipe(epochs=30, batch_size=32),
    ("mobilenet_v2_narrow", "digits8"): Recipe(epochs=40, batch_size=32),
    ("densenet_small", "digits8"): Recipe(epochs=20, batch_size=32),
    ("resnet20", "cifar10"): Recipe(30, 128, 0.2, label_smoothing=0.05),
    ("resnet56", "cifar10"): Recipe(100, 128, 0.2, label_smoothing=0.05),
    ("resnet110", "cifar10"): Recipe(100, 128, 0.2, label_smoothing=0.05),
    ("mobilenet_v2_cifar", "cifar10"): Recipe(100, 128, 0.1, label_smoothing=0.05),
    ("vgg16", "cifar10"): Recipe(100, 128, 0.05, label_smoothing=0.05),
    ("vgg19", "cifar10"): Recipe(100, 128, 0.05, label_smoothing=0.05),
}
"""Recipes by (model, data set). Networks of the digits and MNIST come with the package, and
ResNet-20 of a JPEG copy of CIFAR-10; the other recipes of CIFAR-10 have not been followed to their
end yet."""


def build_model(name: str, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Build a named network with random weights.

    Args:
        name: A key of `MODELS`, or `torchvision/NAME` or `timm/NAME`.
        num_classes: Number of logits, at least 1.
        image_shape: Shape of one image, (C, H, W), each at least 1.

    Returns:
        A network from images (b, C, H, W) to logits (b, num_classes), on PyTorch's default device.
        Its attribute `architecture` says what it is, so that a packed file of it can be read alone.

    Raises:
        ValueError: If the name is unknown or the network cannot take the sizes.
        ImportError: If it is a network of a package that is not installed.
    """
    check_model_name(name)
    if num_classes < 1 or len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(
            "expected num_classes of at least 1 and image_shape (C, H, W) of at least (1, 1, 1), "
            f"got {num_classes} and {tuple(image_shape)}"
        )
    library, _, network = name.partition("/")
    build = functools.partial(LIBRARIES[library], network) if network else MODELS[name]
    model: Any = build(num_classes, image_shape)
    model.architecture = Architecture(name, num_classes, image_shape)
    return cast(nn.Module, model)


def check_model_name(name: str) -> None:
    """Check that a name is one of `MODELS`, or may be one of a package's networks.

    Raises:
        ValueError: If it is neither.
    """
    library, _, network = name.partition("/")
    if name not in MODELS and not (library in LIBRARIES and network):
        names = [*MODELS, *(f"{library}/NAME" for library in LIBRARIES)]
        check_name("model", name, names)


def load_baseline(
    name: str,
    data: DataBundle,
    *,
    checkpoint: str | Path | None = None,
    recipe: Recipe | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """Load a trained network, training it on first use.

    Without a checkpoint, it is the network of the recipe that comes with this package. Where there
    is none, the recipe is followed and the result is kept in the cache directory; of several
    processes that start at once, one trains and the others wait. PyTorch's global random state is
    left as it was.

    Args:
        name: As in `build_model`.
        data: The data; only its training images are used.
        checkpoint: A file of weights to load instead: see `load_checkpoint`.
        recipe: How to train; the entry of `RECIPES` for (`name`, `data.name`) when None.
        device: Where to train and where the network goes.
        progress: Called with (epochs done, epochs) after each epoch of training.

    Returns:
        The network in evaluation mode on `device`.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        RuntimeError: If training diverges.
        ValueError: If the name is unknown, there is neither a recipe nor a checkpoint, or the
            checkpoint does not fit.
    """
    device = torch.device(device)
    recipe = recipe or RECIPES.get((name, data.name))
    with global_seed(0 if recipe is None else recipe.seed, device):
        model = build_model(name, data.num_classes, data.image_shape)
        if checkpoint is not None:
            load_checkpoint(model, checkpoint)
        elif recipe is None:
            known = ", ".join(f"{model} on {images}" for model, images in RECIPES)
            raise ValueError(
                f"no recipe for {name} on {data.name}: give weights, checkpoint= (--weights), or "
                f"recipe= (--train-epochs), or choose one of: {known}"
            )
        else:
            _train_cached(model, name, data, recipe, device, progress)
    return model.to(device).eval()


def _train_cached(
    model: nn.Module,
    name: str,
    data: DataBundle,
    recipe: Recipe,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Fill `model` from what is shipped or in the cache, or train it and fill the cache."""
    file_name = f"{name.replace('/', '-')}-{data.name}-{_digest(recipe, data)}.safetensors"
    path = cache_dir() / "baselines" / file_name
    if _restore(model, SHIPPED / file_name) or _restore_any_copy(model, name, data, recipe):
        return
    with cache_lock(path):
        if not _restore(model, path):
            _logger.info("training %s on %s for %d epochs", name, data.name, recipe.epochs)
            train_by_recipe(model.to(device), data.train.to(device), recipe, progress)
            write_to_cache(path, functools.partial(save_checkpoint, model))


def _restore_any_copy(model: nn.Module, name: str, data: DataBundle, recipe: Recipe) -> bool:
    """Fill `model` from what is shipped for every copy of the images, if its recipe is followed."""
    file_name = ANY_COPY.get((name, data.name))
    if file_name is None or recipe != RECIPES[name, data.name]:
        return False
    is_restored = _restore(model, SHIPPED / file_name)
    if is_restored:
        _logger.info("%s on %s: trained on a JPEG copy of the images", name, data.name)
    return is_restored


def _restore(model: nn.Module, path: Path) -> bool:
    if not path.exists():
        return False
    try:
        load_checkpoint(model, path)
    except (OSError, ValueError) as error:
        _logger.warning("training again, the cached network is not usable: %s", error)
        return False
    return True


def _digest(recipe: Recipe, data: DataBundle) -> str:
    """Return a name for everything that the trained weights follow from."""
    settings = [asdict(recipe), data.image_shape, data.num_classes, len(data.train)]
    digest = hashlib.sha256(json.dumps(settings).encode())
    digest.update(data.train.labels.numpy().tobytes())
    sample = torch.linspace(0, len(data.train) - 1, min(256, len(data.train))).long()
    images, _ = next(iter(data.train.to(torch.device("cpu")).batches([sample])))
    # Rounded, because devices differ in the last bits.
    digest.update((images * 100).round().to(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
