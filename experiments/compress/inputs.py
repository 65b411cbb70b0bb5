"""The network and the images of the main job, from names, files or a caller's hands."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress
from torch import nn

from compress_env.data.bundle import DATASETS, DataBundle, ImageSource, load_data
from compress_env.data.intake import as_bundle
from compress_env.networks.libraries import choose_preparation
from compress_env.networks.models import Recipe, load_baseline, load_checkpoint
from compress_env.networks.training import Training
from compress_env.seeding import global_seed
from compress_env.store.digests import identify
from compress_env.task.task import Finetuner, Scorer, select_device
from experiments.common.cli.given import HANDED_OVER
from experiments.common.cli.user_code import load_object, names_code
from experiments.common.inputs import data_digest, network_digest
from experiments.common.run_folder import RunFolder
from experiments.compress.config import Config
from experiments.search.episodes import Episode
from experiments.search.policies import StagePolicy

__all__ = [
    "Given",
    "check_values",
    "code_digests",
    "input_digests",
    "load_images",
    "load_network",
]

BASELINE, TRAINING = "baseline", "baseline-training"
"""States of a network of the caller's own: trained, and while it is trained."""


class Given(NamedTuple):
    """What a caller hands over as objects, in place of what the settings name."""

    model: nn.Module | None = None
    """The trained network."""
    data: DataBundle | None = None
    """The images."""
    score: Scorer | None = None
    """Used instead of validation accuracy."""
    finetune: Finetuner | None = None
    """Used instead of the built-in final fine-tuning."""
    finetunes_episodes: bool = False
    """Whether it is used within episodes too."""


def input_digests(model: nn.Module, data: DataBundle) -> dict[str, str]:
    """Return digests of a job's network and its images, by what they are of."""
    return {"network": network_digest(model), "data": data_digest(data)}


def code_digests(given: Given) -> dict[str, str]:
    """Return digests of a caller's functions that can be identified, by what they are."""
    code = {
        "score": identify(given.score),
        "finetune": identify((given.finetune, given.finetunes_episodes)),
    }
    return {name: each for name, each in code.items() if each is not None}


def load_images(config: Config, given: Given) -> DataBundle:
    """Return the images, on the CPU.

    Raises:
        ValueError: If they cannot be used.
        FileNotFoundError: If they are not there.
    """
    if given.data is not None:
        return given.data
    name, size = config.data or "", config.image_size
    _check_at_hand("images", name)
    is_folder = not (name in DATASETS or names_code(name))
    kind = "folder" if is_folder else name
    prepared = choose_preparation(config.preparation, config.model or "", kind)
    if names_code(name):
        found = load_object(name)
        found = _called(name, found) if callable(found) else found
        parts = found if isinstance(found, tuple) else (found,)
        try:
            return as_bundle(*parts, image_size=size)
        except TypeError as error:
            raise ValueError(f"{name}: {error}") from None
    root, download = name if is_folder else config.data_root, config.download
    return load_data(kind, data_root=root, download=download, size=size, preparation=prepared)


def load_network(
    config: Config,
    data: DataBundle,
    given: Given,
    folder: RunFolder,
    console: Console,
    check: Callable[[nn.Module], None],
) -> nn.Module:
    """Return the network, trained if that is asked for, on the CPU.

    A network of the caller's own that is trained here is kept in the folder after each epoch, for a
    resumption.

    Args:
        config: The settings.
        data: The images.
        given: What the caller has handed over.
        folder: The run folder.
        console: Where progress goes.
        check: Raises an error if the settings do not suit such a network, before it is trained.

    Raises:
        ValueError: If there is no such network, or its weights do not fit.
        FileNotFoundError: If the file of the weights is not there.
    """
    if given.model is not None:
        return given.model
    device, name = select_device(config.device), config.model or ""
    _check_at_hand("network", name)
    recipe = None if config.train_epochs is None else Recipe(config.train_epochs)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("baseline", visible=False)

        def advance(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total, visible=True)

        if not names_code(name):
            return load_baseline(
                name,
                data.to(device),
                checkpoint=config.weights,
                recipe=recipe,
                device=device,
                progress=advance,
            ).cpu()
        with global_seed(config.seed, device):
            model = _built(name)
        if config.weights is not None:
            load_checkpoint(model, config.weights)
        if recipe is not None:
            _train_once(model.to(device), data.train.to(device), recipe, folder, advance, check)
        return model.cpu()


def _train_once(
    model: nn.Module,
    train: ImageSource,
    recipe: Recipe,
    folder: RunFolder,
    progress: Callable[[int, int], None],
    check: Callable[[nn.Module], None],
) -> None:
    """Train a network in place, go on with that, or give it the weights that were kept."""
    kept, begun = folder.read_state(BASELINE), folder.read_state(TRAINING)
    if kept is not None:
        with folder.using(BASELINE):
            model.load_state_dict(kept)
        return
    if begun is None:
        check(model)
    training = Training(model, train, recipe)
    if begun is None:
        folder.write_state(TRAINING, training.state())
    else:
        with folder.using(TRAINING):
            training.restore(begun)
    while training.n_done < recipe.epochs:
        training.run_epoch()
        folder.write_state(TRAINING, training.state())
        progress(training.n_done, recipe.epochs)
    folder.write_state(BASELINE, model.state_dict())


def _check_at_hand(what: str, name: str) -> None:
    """Check that somebody can load what is named.

    Raises:
        ValueError: If only the program can that the run was started from.
    """
    if name.startswith(HANDED_OVER):
        raise ValueError(
            f"the {what} of this run came from a Python program: call compress_env.compress there "
            "with the same out= to go on"
        )


def _built(reference: str) -> nn.Module:
    """Return the module that a name in a file stands for."""
    found = load_object(reference)
    model = found if isinstance(found, nn.Module) else None
    if model is None and callable(found):
        model = _called(reference, found)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{reference} must be a torch.nn.Module, its class or a function that returns one, got "
            f"{type(found if model is None else model).__name__}"
        )
    return model


def _called(reference: str, make: Callable[[], Any]) -> Any:
    """Call what takes no arguments.

    Raises:
        ValueError: If it takes some, or fails.
    """
    try:
        parameters = inspect.signature(make).parameters.values()
    except ValueError:
        parameters = ()  # type: ignore[assignment]
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in free]
    if needed:
        raise ValueError(
            f"{reference} takes {', '.join(needed)}: name a function without arguments that calls "
            "it with them"
        )
    try:
        return make()
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ValueError(f"{reference} fails: {type(error).__name__}: {reason}") from error


def check_values(episode: Episode, policy: StagePolicy) -> None:
    """Check that a policy has done here what it did in the run that it is from.

    Raises:
        ValueError: If it has not.
    """
    if episode.layers != policy.layers:
        raise ValueError(f"the policy decides {policy.layers}, this network {episode.layers}")
    for layer, now, then in zip(episode.layers, episode.values, policy.values, strict=True):
        if not math.isclose(now, then, abs_tol=1e-9):
            raise ValueError(
                f"the policy was found under other settings: of {layer} it made {then}, here "
                f"{now}; give the settings of its run"
            )
