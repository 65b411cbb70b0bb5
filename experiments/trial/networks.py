"""The networks that trials of a folder start from.

`networks.json` tells the digest of each task's network, and `networks/DIGEST.safetensors` holds it,
once for all tasks that start from it, and not where the package comes with the same one. Earlier
folders have `networks/TASK.safetensors` instead.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from compress_env.files import replacing
from compress_env.networks.checkpoints import read_safetensors, save_checkpoint
from compress_env.networks.models import SHIPPED
from compress_env.store.digests import digest
from experiments.common.stored import check_name, read_object
from experiments.search.names import short_name

__all__ = ["network_path", "save_networks", "stored_digest", "weights_digest"]

LIST = "networks.json"


def stored_digest(folder: Path, task: str) -> str | None:
    """Return the digest of the network that a task starts from; None where a folder has none.

    Raises:
        ValueError: If the folder's list of networks cannot be read.
    """
    listed = _read_list(folder).get(short_name(task))
    former = _former_path(folder, task)
    return _digest(former) if listed is None and former.exists() else listed


def network_path(folder: Path, task: str) -> Path | None:
    """Return the file of the network that a task starts from; None where a folder has none.

    Raises:
        ValueError: If it is neither in the folder nor in the package, or is another one by now.
    """
    wanted, former = stored_digest(folder, task), _former_path(folder, task)
    if wanted is None or former.exists():
        return None if wanted is None else former
    own = _file_of(folder, wanted)
    found = own if own.exists() else _shipped().get(wanted)
    if found is None:
        raise ValueError(
            f"{task} starts from a network (sha256 {wanted[:12]}) that is neither in "
            f"{str(own.parent)!r} nor in the package"
        )
    if _digest(found) != wanted:
        raise ValueError(f"{str(found)!r} has been changed: it is not the network of {task}")
    return found


def save_networks(folder: Path, models: Mapping[str, nn.Module]) -> None:
    """Keep the network that each task starts from, by task, beside those that are there."""
    digests = {short_name(task): weights_digest(model) for task, model in models.items()}
    for task, model in models.items():
        path = _file_of(folder, digests[short_name(task)])
        if path.stem not in _shipped() and not path.exists():
            path.parent.mkdir(exist_ok=True)
            save_checkpoint(model, path)
    if digests:
        with replacing(folder / LIST) as temporary:
            text = json.dumps(_read_list(folder) | digests, indent=2) + "\n"
            temporary.write_text(text, encoding="utf-8")


def _read_list(folder: Path) -> dict[str, str]:
    path = folder / LIST
    listed = read_object(path) if path.exists() else {}
    return {task: check_name(value) for task, value in listed.items()}


def _file_of(folder: Path, wanted: str) -> Path:
    return folder / "networks" / f"{wanted}.safetensors"


def _former_path(folder: Path, task: str) -> Path:
    return folder / "networks" / f"{re.sub(r'[^-.0-9A-Za-z]', '_', short_name(task))}.safetensors"


def weights_digest(model: nn.Module) -> str:
    """Return a hex sha256 of the names and values of a network's weights, in whatever order."""
    return _digest_of(model.state_dict())


def _digest_of(weights: Mapping[str, Tensor]) -> str:
    return digest(dict(sorted(weights.items())))


def _digest(path: Path) -> str:
    return _digest_of(read_safetensors(path))


@functools.cache
def _shipped() -> dict[str, Path]:
    """Return the networks that the package comes with, by digest."""
    return {_digest(path): path for path in SHIPPED.glob("*.safetensors")}
