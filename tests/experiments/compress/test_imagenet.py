"""The commands of docs/imagenet.md, as they stand there, on made trees of images."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from compress_env.data.bundle import DataBundle
from compress_env.networks.checkpoints import read_safetensors, save_checkpoint
from compress_env.networks.models import build_model
from experiments.common.cli.parsing import parse_command
from experiments.compress.compress import Config, run
from experiments.compress.inputs import Given, load_images
from experiments.throughput import throughput
from experiments.train import train
from tests.fakes import quiet
from tests.pages import PAGES

pytestmark = pytest.mark.usefixtures("blank_figures")

TEXT = PAGES["imagenet.md"]
(PAPER,) = re.findall(r'^PAPER="(.*)"$', TEXT, re.M)
COMMANDS = [
    shlex.split(line.replace("$PAPER", PAPER))[2:]
    for line in re.findall(r"^compress-env compress .*$", TEXT, re.M)
]
"""Options of each command."""


def name_of(command: list[str]) -> str:
    return Path(option(command, "--out")).name


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


SMALLEST = shlex.split(
    "--n-envs 1 --evaluations 1 --agent-rate-drops 1 --method magnitude --finetune-steps 1 "
    "--final-finetune-steps 2 --batch-size 4 --no-onnx --device cpu"
)
"""What a test may change: sizes and times, and how the channels of a layer are found, which the
networks of other tests are pruned by."""


def make_tree(root: Path, n_classes: int, side: int) -> Path:
    """Write a tree as ImageNet's with one image of each class in each of the two splits."""
    rng = np.random.default_rng(0)
    names = [f"n{number:08}" for number in range(n_classes)]
    for split in ("train", "val"):
        for name in names:
            folder = root / "imagenet" / split / name
            folder.mkdir(parents=True)
            pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}_0.JPEG")
    torch.save(({name: (name,) for name in names}, []), root / "imagenet" / "meta.bin")
    return root


def write_weights(command: list[str], n_classes: int, side: int) -> dict[str, torch.Tensor]:
    """Write the file that a command names, as the network's library publishes it."""
    network = build_model(option(command, "--model"), n_classes, (3, side, side))
    path = Path(option(command, "--weights"))
    if path.suffix == ".safetensors":
        save_checkpoint(network, path)
    else:
        torch.save(network.state_dict(), path)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_every_row_of_the_tables_has_a_command() -> None:
    rows = [(option(c, "--model"), option(c, "--macs")) for c in COMMANDS]
    networks = ["torchvision/resnet18", "torchvision/resnet50"]
    assert rows[:6] == [(name, share) for name in networks for share in ("0.7", "0.5", "0.3")]
    assert [name_of(c) for c in COMMANDS[6:]] == [
        *("mobilenet-v1", "mobilenet-v2"),
        *(f"mobilenet-v2-{size}" for size in ("0.95", "0.89", "0.81")),
        "vgg16",
    ]
    # Bytes of the float32 file, which the page tells in megabytes.
    shares = {name_of(c): float(option(c, "--size")) for c in COMMANDS if "--size" in c}
    for name, megabytes in (("0.95", 0.95), ("0.89", 0.89), ("0.81", 0.81)):
        assert 0.99 * megabytes < shares[f"mobilenet-v2-{name}"] * 14.1862 <= megabytes
    assert shares["vgg16"] == pytest.approx(1 / 33, rel=1e-2)


@pytest.mark.parametrize("command", COMMANDS, ids=name_of)
def test_commands_are_valid(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(option(command, "--weights")).touch()
    config = parse_command(Config, command)
    config.check()
    assert config.searcher == "q_critic_ppo_paper" and config.data == "imagenet"
    assert config.agent_rate_drops and config.agent_rate_decay == 0.99


@pytest.mark.parametrize(
    ("command", "config_class"), [("train", train.Config), ("throughput", throughput.Config)]
)
def test_other_commands_are_valid(command: str, config_class: type[Any]) -> None:
    lines = re.findall(rf"compress-env {command} (-[^`\n]*)", TEXT)
    lines = [line for line in lines if "NAME" not in line]
    assert lines
    for line in lines:
        config = parse_command(config_class, shlex.split(line))
        check = config.recipe if command == "train" else config.check
        check()


@pytest.mark.parametrize("data", ["imagenet", "folder"])
def test_images_are_normalised_as_the_published_weights_want(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm")
    monkeypatch.setattr("compress_env.data.bundle._MAX_WORKERS", 0)
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    make_tree(tmp_path, 2, 40)
    Image.new("RGB", (40, 40), "white").save(next((tmp_path / "imagenet" / "val").rglob("*.JPEG")))
    for command in COMMANDS:
        Path(option(command, "--weights")).touch()
        (tmp_path / "DATA").mkdir(exist_ok=True)
        config = replace(parse_command(Config, command), data_root=tmp_path, image_size=32)
        if data == "folder":
            config = replace(config, data=str(tmp_path / "imagenet"), data_root=None)
        images = load_images(config, Given())
        whitest = max(float(batch.max()) for batch, _ in all_of(images))
        usual, is_timm = (1 - 0.406) / 0.225, option(command, "--model").startswith("timm/")
        assert whitest == pytest.approx(1.0 if is_timm else usual, abs=1e-3)
        for preparation, expected in (("imagenet", usual), ("timm/mobilenetv1_100", 1.0)):
            images = load_images(replace(config, preparation=preparation), Given())
            whitest = max(float(batch.max()) for batch, _ in all_of(images))
            assert whitest == pytest.approx(expected, abs=1e-3)


def all_of(data: DataBundle) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the images that judge."""
    for source in (data.validation, data.test):
        yield from source.batches([torch.arange(len(source))])


def check_run(command: list[str], data: Path, n_classes: int, side: int, *more: str) -> Any:
    """Run a command as it stands, but for what makes it small, and return its table."""
    weights = write_weights(command, n_classes, side)
    small = [*SMALLEST, "--data-root", str(data), "--image-size", str(side), *more]
    config = parse_command(Config, [*command, *small])
    run(config, quiet())
    assert config.out is not None
    kept = read_safetensors(config.out / "baseline.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in kept.items())
    table = pd.read_csv(config.out / "table.csv").set_index("network")
    within = table.drop(index=["baseline", f"{config.searcher}-8-5bit"], errors="ignore")
    assert within["within_budget"].all()
    assert (within["macs"] <= float(option(command, "--macs"))).all()
    if "--size" in command:
        assert (within["size"] <= float(option(command, "--size"))).all()
    assert (table["test_error_top5"] <= table["test_error"]).all()
    return table


@pytest.mark.slow
def test_a_command_runs_on_a_small_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("compress_env.data.bundle._MAX_WORKERS", 0)
    data = make_tree(tmp_path / "data", 20, 40)
    (command,) = (c for c in COMMANDS if name_of(c) == "mobilenet-v2")
    table = check_run(command, data, 20, 32, "--compare")
    assert table["n_evaluations"].to_dict() == {"baseline": 0, "q_critic_ppo_paper": 1}


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("data"), 1000, 64)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=name_of)
def test_commands_run_on_a_thousand_classes(
    command: list[str], thousand: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if option(command, "--model").startswith("timm/"):
        pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    if "8-5bit" not in command:
        table = check_run(command, thousand, 1000, 32, "--compare", "uniform")
        assert list(table.index[1:]) == ["uniform", "q_critic_ppo_paper"]
        return
    # 138 M parameters: no processes beside them, and most of them pruned before bits are given.
    monkeypatch.setattr("compress_env.data.bundle._MAX_WORKERS", 0)
    fewer = ("--macs", "0.05", "--distill", "0", "--final-finetune-steps", "1")
    table = check_run(command, thousand, 1000, 32, *fewer, "--compare", "8-5bit")
    assert list(table.index[1:]) == ["q_critic_ppo_paper-8-5bit", "q_critic_ppo_paper"]
