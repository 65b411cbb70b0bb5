"""What the README and the pages in `docs/` show works as it stands, and all is found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.networks.models import MODELS, build_model
from compress_env.pruning.graph.surgery import find_walk
from compress_env.task.layers import compute_layers
from experiments.common.latency import OnnxNetwork
from tests.fakes import PlainNet, seeded
from tests.pages import PAGES, README, ROOT


def snippet(text: str, number: int) -> str:
    """Find an example of a page by its number, from 0."""
    examples: list[str] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return examples[number]


def test_training_an_agent() -> None:
    names: dict[str, Any] = {}
    example = snippet(PAGES["quickstart.md"], 0)
    assert example in README
    exec(example, names)
    assert isinstance(names["small"], nn.Module)
    full = names["env"].unwrapped.unpruned.macs
    assert names["info"]["dense_macs"] <= 0.164 * full
    n_params = sum(p.numel() for p in names["small"].parameters())
    assert n_params == names["info"]["dense_params"] < 61_706


def test_own_network_and_data() -> None:
    generator = torch.Generator().manual_seed(0)

    def images(n: int) -> torch.Tensor:
        return torch.rand(n, 1, 8, 8, generator=generator)

    names: dict[str, Any] = {
        "train_images": images(60),
        "train_labels": torch.arange(60) % 3,
        "test_images": images(30),
        "test_labels": torch.arange(30) % 3,
        "trained_module": seeded(PlainNet),
    }
    exec(snippet(PAGES["own_network.md"], 1), names)
    env = names["env"]
    env.reset(seed=0)
    info = env.step(np.zeros(1, np.float32))[-1]
    assert 0.0 <= info["accuracy"] <= 1.0


def test_a_network_with_branches_on_tensors() -> None:
    names: dict[str, Any] = {}
    exec(snippet(PAGES["own_network.md"], 2), names)
    env, network, small = names["env"].unwrapped, names["network"], names["small"]
    assert env.skipped_layers == {}
    assert [layer.name for layer in env.walk] == ["pointwise", "head"]
    assert type(small) is type(network)
    assert names["info"]["dense_macs"] <= 0.4 * env.unpruned.macs
    assert small.depthwise.groups == small.stem[0].out_channels <= 16
    assert small.head.in_features == small.pointwise.out_channels + small.plain.out_channels < 32
    assert names["info"]["accuracy"] > 0.5


def test_files_are_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(snippet(PAGES["files.md"], 0), names)
    assert names["n_bytes"] == names["info"]["size_bytes"] <= 0.1 * 247_560
    assert (tmp_path / "small.cenv").stat().st_size == names["n_bytes"]
    with torch.no_grad():
        logits = names["network"](names["image"])
        assert torch.equal(names["again"](names["image"]), logits)
    exported = OnnxNetwork("small.onnx").logits(names["image"])
    torch.testing.assert_close(exported, logits, rtol=0, atol=1e-4)
    assert all(isinstance(p, nn.Parameter) for p in names["again"].parameters())


@pytest.mark.slow
def test_parallel_actors(tmp_path: Path) -> None:
    (tmp_path / "actors.py").write_text(snippet(PAGES["clients.md"], 3), encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "actors.py"], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "transitions.sqlite").exists()


def test_pruning_by_importance() -> None:
    names: dict[str, Any] = {}
    exec(snippet(PAGES["allocation.md"], 0), names)
    plan, env = names["env"].plan, names["env"]
    rates = names["rates"]["pruning_rate"].tolist()
    assert plan.count(rates, "filters") <= 0.5 * plan.full("filters") == env.budget
    assert names["info"]["layer"] == env.walk[-1].name


@pytest.mark.parametrize("number", [0, 2], ids=["stable-baselines3", "gymnasium"])
def test_other_clients(number: int) -> None:
    names: dict[str, Any] = {}
    exec(snippet(PAGES["clients.md"], number), names)
    if number == 0:
        assert len(names["agent"].ep_info_buffer) == 64 // 4
    else:
        assert names["terminated"].all() and (names["infos"]["final_info"]["accuracy"] > 0.0).all()


def test_sb3_contrib() -> None:
    pytest.importorskip("sb3_contrib")
    names: dict[str, Any] = {}
    exec(snippet(PAGES["clients.md"], 1), names)
    assert names["agent"].num_timesteps == 40


def test_how_much_a_critic_promises() -> None:
    names: dict[str, Any] = {}
    exec(snippet(PAGES["clients.md"], 4), names)
    assert len(names["overestimation"].records) == 60 // 4


def test_table_of_environments_is_complete_and_true() -> None:
    rows = re.findall(r"\| `(compress_env/[\w-]+)` \|.*\| (.*) \|", PAGES["environments.md"])
    ids = {name for name in gym.registry if name.startswith("compress_env/")}
    assert {name for name, _ in rows} == ids
    for name, budget in rows:
        kwargs = gym.spec(name).kwargs
        fraction = kwargs.get("flops_budget", kwargs.get("size_budget"))
        percent = re.match(r"([\d.]+) %", budget)
        assert (None if percent is None else float(percent[1]) / 100) == pytest.approx(fraction)


NETWORKS = re.findall(
    r"\| `([\w/]+)`(?: \((\d)x(\d+)x\d+\))? \| ([\d,]+) \| .* \| (\d+) of (\d+) \| (\w+)",
    PAGES["networks.md"],
)
SMALL_NETWORKS = [row for row in NETWORKS if row[0].startswith(("lenet", "cnn")) or row[2] == "16"]


SMALL_NETWORKS += [row for row in NETWORKS if row[0].startswith("resnet20")]


@pytest.mark.parametrize("row", SMALL_NETWORKS, ids=lambda row: row[0])
def test_table_of_networks_is_true(row: tuple[str, ...]) -> None:
    name, channels, side, n_params, n_decided, n_layers, n_skipped = row
    shape = (int(channels or 3), int(side or 32), int(side or 32))
    model = build_model(name, 10, shape).eval()
    walk = find_walk(model, torch.zeros(1, *shape))
    assert sum(p.numel() for p in model.parameters()) == int(n_params.replace(",", ""))
    assert (len(walk.decisions), len(compute_layers(model))) == (int(n_decided), int(n_layers))
    assert len(walk.skipped) == (0 if n_skipped == "none" else int(n_skipped))


def test_table_of_networks_names_every_one() -> None:
    assert set(MODELS) == {row[0] for row in NETWORKS if "/" not in row[0]}


def test_arguments_of_the_environments_are_documented() -> None:
    for name in ("Pruning", "Quantization"):
        made = gym.make(f"compress_env/{name}-v0").unwrapped
        assert isinstance(made, LayerwiseCompressionEnv)
        named = set(re.findall(r"\| `(\w+)` \|", type(made).__doc__ or ""))
        accepted = set(type(made).__init__.__annotations__) - {"options", "return"}
        assert accepted <= named


TEXTS = {"README.md": README, **{f"docs/{name}": text for name, text in PAGES.items()}}
LINKS = [
    (name, target)
    for name, text in TEXTS.items()
    for target in re.findall(r"\]\(([^)#]*)#?[^)]*\)", text)
    if target and not target.startswith("http")
]
CONTENTS = re.findall(
    r"^([\w/]+)$", "\n".join(re.findall(r"```\{toctree\}.*?```", PAGES["index.md"], re.S)), re.M
)


def test_links_lead_somewhere() -> None:
    assert len(LINKS) > 60
    assert [link for link in LINKS if not (ROOT / link[0]).parent.joinpath(link[1]).exists()] == []


def test_every_page_is_found_from_the_readme_and_in_the_contents() -> None:
    found = ["README.md"]
    for name in found:  # which grows
        targets = [target for page, target in LINKS if page == name and target.endswith(".md")]
        paths = [(ROOT / name).parent.joinpath(target).resolve() for target in targets]
        known = [str(path.relative_to(ROOT)) for path in paths]
        found += [path for path in dict.fromkeys(known) if path in TEXTS and path not in found]
    generated = {"docs/changelog.md", "docs/reference.md", "docs/index.md"}
    assert set(TEXTS) - set(found) <= generated
    assert {f"docs/{name}.md" for name in CONTENTS} | {"README.md", "docs/index.md"} == set(TEXTS)
    assert len(CONTENTS) == len(set(CONTENTS))


def test_readme_is_short_and_has_the_one_call() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    first, last = (number for number, line in enumerate(lines) if line == "<!-- one call -->")
    assert 0 < last - first - 1 <= 15


def test_table_of_tools_is_that_of_the_comparison() -> None:
    table = [line for line in README.splitlines() if line.startswith("|") and line.count("|") == 8]
    compared = PAGES["comparison.md"].splitlines()
    assert len(table) == 2 + 7 and all(line in compared for line in table)
    rows = [line for line in compared if line.startswith("|")]
    sources = PAGES["comparison.md"].split("## Sources")[1]
    for tool in ("mit-han-lab/amc", "mit-han-lab/haq", "VainF", "NVIDIA", "facebookresearch"):
        assert f"https://github.com/{tool}" in sources
    assert len(rows) == 2 + 9


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = "pip install -e '.[test]' && pytest"
    assert f"```bash\n{command}\n```" in README
    assert "pip install -e . && python -m experiments.compress" in README
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "README.md" in script
    (slow,) = re.findall(r"^pytest .*slow.*$", script, re.M)
    assert f"`{slow}`" in PAGES["development.md"]


def test_extras_are_those_the_quick_start_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"^\| `(\w+)` \|", PAGES["quickstart.md"], re.M)
    assert set(project["optional-dependencies"]) == set(named) and len(named) == 10
