"""One call compresses a network at hand to any subset of budgets, and is resumable."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import compress_env
from experiments.compress import compress
from experiments.compress.config import Config
from experiments.compress.outcome import networks
from tests.fakes import PlainNet, make_data, seeded, stop_after_state

pytestmark = pytest.mark.usefixtures("blank_figures")

QUICK: dict[str, Any] = {
    "effort": "quick",
    "finetune_steps": 1,
    "final_finetune_steps": 2,
    "onnx": False,
    "verbose": False,
    "device": "cpu",
}


def network() -> nn.Module:
    return seeded(PlainNet)


def test_both_budgets_come_to_a_smaller_module_and_a_packed_file(tmp_path: Path) -> None:
    model, data = network(), make_data()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = compress_env.compress(model, data, macs=0.6, size=0.4, out=tmp_path / "run", **QUICK)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert type(result.model) is PlainNet and not result.model.training
    assert sum(p.numel() for p in result.model.parameters()) < sum(
        p.numel() for p in model.parameters()
    )
    assert list(result.table["network"]) == ["baseline", "uniform", "portfolio"]
    assert result.table["is_chosen"].sum() == 1
    chosen = result.table[result.table["is_chosen"]].iloc[0]
    assert chosen["macs"] <= 0.6 and chosen["size"] <= 0.4 and chosen["within_budget"]
    assert chosen["test_accuracy"] == 1.0 - chosen["test_error"]
    assert set(result.policy) == {"pruning", "quantization"}
    assert set(result.episodes["search"]) == {"uniform", "portfolio"}
    n_bytes = result.save(tmp_path / "small.cenv")
    assert n_bytes == chosen["size_bytes"]
    again = compress_env.load(tmp_path / "small.cenv", network())
    images = next(iter(data.test.batches([torch.arange(4)])))[0]
    assert torch.equal(again(images), result.quantized(images))
    assert torch.allclose(result.model(images), result.quantized(images), atol=1e-6)
    assert result.to_onnx(tmp_path / "small.onnx") == (tmp_path / "small.onnx").stat().st_size
    assert result.report.is_file() and result.folder == tmp_path / "run"


@pytest.mark.parametrize(
    ("budgets", "stages"),
    [
        ({"macs": 0.5}, {"pruning"}),
        ({"params": 0.5}, {"pruning"}),
        ({"macs": 0.8, "params": 0.5}, {"pruning"}),
        ({"size": 0.3}, {"quantization"}),
        ({"params": 0.7, "size": 0.3}, {"pruning", "quantization"}),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_any_subset_of_budgets_is_met(
    budgets: dict[str, Any], stages: set[str], tmp_path: Path
) -> None:
    result = compress_env.compress(network(), make_data(), **budgets, out=tmp_path / "run", **QUICK)
    assert set(result.policy) == stages
    for row in result.table.to_dict("records")[1:]:
        assert all(row[name] <= budget for name, budget in budgets.items()), row
    assert ("pruning" in stages) == (result.table["macs"].iloc[-1] < 1.0)
    figures = re.findall(r"!\[.*?\]\((.*?)\)", (result.folder / "report.md").read_text())
    assert {path.name for path in result.folder.glob("*.png")} == set(figures) != set()


class Watched(PlainNet):
    """Knows which of its kind were told to move."""

    moved: ClassVar[list[nn.Module]] = []

    def cpu(self) -> Watched:
        self.moved.append(self)
        return super().cpu()


@pytest.mark.parametrize("budgets", [{"size": 0.4}, {"macs": 0.6}, {"macs": 0.6, "size": 0.4}])
def test_network_that_is_given_stays_where_it_is(budgets: dict[str, Any], tmp_path: Path) -> None:
    model = seeded(Watched)
    Watched.moved.clear()
    compress_env.compress(model, make_data(), **budgets, out=tmp_path / "run", **QUICK)
    assert not any(moved is model for moved in Watched.moved) and Watched.moved


def test_search_starts_from_the_rule(tmp_path: Path) -> None:
    settings = QUICK | {"effort": "normal", "evaluations": 12}
    result = compress_env.compress(
        network(), make_data(), macs=0.5, out=tmp_path / "run", **settings
    )
    assert list(result.table["network"]) == ["baseline", "uniform", "portfolio", "cma_es"]
    episodes = result.episodes.set_index("search")
    values = [name for name in map(str, episodes) if name.startswith("value:")]
    search = episodes.loc["cma_es"]
    assert list(search.iloc[0][values]) == list(episodes.loc["portfolio"][values])
    assert search["n_evaluations"].iloc[-1] == 12 and len(search) >= 3  # the rules took some
    assert search["reward"].max() >= episodes.loc["portfolio"]["reward"]


def one_decision(kind: str) -> nn.Module:
    """Return a network with one rate to choose, or with one number of bits."""
    torch.manual_seed(0)
    if kind == "size":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 3)]
    return nn.Sequential(*layers).eval()


ONE = [{"macs": 0.5}, {"macs": 0.5, "size": 0.3}, {"size": 0.5}]


@pytest.mark.parametrize("budgets", ONE, ids="+".join)
def test_one_decision_is_searched_at_random_around_the_rule(
    budgets: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = QUICK | {"effort": "normal", "evaluations": 12, "verbose": True}
    model = one_decision(*(["macs"] if "macs" in budgets else budgets))
    result = compress_env.compress(model, make_data(), out=tmp_path / "run", **budgets, **settings)
    assert list(result.table["network"])[-1] == "cma_es"
    stage = "pruning" if "macs" in budgets else "quantization"
    assert f"cma_es: {stage}: one decision: random search around" in capsys.readouterr().out
    episodes = result.episodes[result.episodes["stage"] == stage].set_index("search")
    assert len(episodes.loc["cma_es"]) > 1
    assert episodes.loc["cma_es"]["reward"].max() >= episodes.loc["portfolio"]["reward"]


@pytest.mark.parametrize("budgets", ONE, ids="+".join)
@pytest.mark.parametrize("algo", ["cma_es", "cma_es+uniform"])
def test_cma_es_by_name_refuses_one_decision_before_anything_runs(
    algo: str, budgets: dict[str, Any], tmp_path: Path
) -> None:
    model = one_decision(*(["macs"] if "macs" in budgets else budgets))
    settings = QUICK | budgets | {"algo": algo, "evaluations": 12}
    with pytest.raises(ValueError, match="takes at least 2 dimensions, got 1, the only decision"):
        compress_env.compress(model, make_data(), out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_images_come_as_tensors_data_sets_or_loaders(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = make_data().image_shape
    pairs = [(torch.rand(n, *shape, generator=generator), torch.arange(n) % 3) for n in (60, 40)]
    datasets = [TensorDataset(*pair) for pair in pairs]
    loaders = [DataLoader(dataset, 8) for dataset in datasets]
    forms: list[list[Any]] = [[*pairs], [*datasets], [*loaders]]
    tables = [
        compress_env.compress(
            network(), train, test, macs=0.5, out=tmp_path / str(n), **QUICK
        ).table.drop(columns="seconds")
        for n, (train, test) in enumerate(forms)
    ]
    times = [name for name in map(str, tables[0]) if "latency" in name]
    first = tables[0].drop(columns=times)
    assert all(first.equals(each.drop(columns=times)) for each in tables[1:])


def test_own_loop_and_own_score_take_the_place_of_the_built_in_ones(tmp_path: Path) -> None:
    calls: list[int] = []

    def finetune(model: nn.Module, n_steps: int) -> None:
        calls.append(n_steps)
        with torch.no_grad():
            next(model.parameters()).mul_(1.5)

    def score(model: nn.Module) -> float:
        return 0.25

    settings = QUICK | {"final_finetune_steps": 7, "compare": ()}
    result = compress_env.compress(
        network(), make_data(), macs=0.5, out=tmp_path / "a", finetune=finetune, score=score,
        **settings,
    )  # fmt: skip
    assert calls == [7]
    assert set(result.episodes["accuracy"]) == set(result.table["validation_accuracy"]) == {0.25}
    compress_env.compress(
        network(), make_data(), macs=0.5, out=tmp_path / "b", finetune=finetune,
        finetune_episodes=True, **settings,
    )  # fmt: skip
    assert sorted(set(calls[1:])) == [1, 7]


def test_own_score_chooses_the_network(tmp_path: Path) -> None:
    scores = iter([0.5, 0.5, 0.1, 0.9])  # in the order of the table

    def measure(model: nn.Module) -> float:
        return next(scores) if final else 0.5

    final, write = False, networks.score_networks

    def score_networks(*arguments: Any) -> Any:
        nonlocal final
        final = True
        return write(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compress, "score_networks", score_networks)
        settings = QUICK | {"compare": ("uniform", "l1")}
        result = compress_env.compress(
            network(), make_data(), macs=0.5, out=tmp_path / "run", score=measure, **settings
        )
    assert list(result.table["validation_accuracy"]) == [0.5, 0.5, 0.1, 0.9]
    assert result.table.loc[result.table["is_chosen"], "network"].item() == "portfolio"


def test_loop_that_ruins_the_network_leaves_a_run_to_go_on_with(tmp_path: Path) -> None:
    def ruin(model: nn.Module, n_steps: int) -> None:
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))

    def other(model: nn.Module, n_steps: int) -> nn.Module:
        return nn.Linear(2, 2)

    arguments: dict[str, Any] = {"macs": 0.5, "out": tmp_path / "run", **QUICK}
    with pytest.raises(FloatingPointError, match="NaN or infinite") as caught:
        compress_env.compress(network(), make_data(), finetune=ruin, **arguments)
    assert "compress_env.compress(..., out=" in "".join(caught.value.__notes__)
    with pytest.raises(ValueError, match="must train the network that it is given"):
        compress_env.compress(network(), make_data(), finetune=other, **arguments)
    assert compress_env.compress(network(), make_data(), **arguments).table["macs"].min() <= 0.5


@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
def test_callers_switches_make_no_difference(switch: Any, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"macs": 0.5, **QUICK}
    expected = compress_env.compress(network(), make_data(), out=tmp_path / "a", **arguments)
    model, data = network(), make_data()
    with switch():
        found = compress_env.compress(model, data, out=tmp_path / "b", **arguments)
    assert found.table["test_error"].tolist() == expected.table["test_error"].tolist()
    pairs = zip(found.model.parameters(), expected.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


class TestCalledAgain:
    def test_finished_run_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments: dict[str, Any] = {"macs": 0.5, "size": 0.4, "out": tmp_path / "run", **QUICK}
        first = compress_env.compress(network(), make_data(), **arguments)
        monkeypatch.setattr(compress, "Job", None)  # nothing is run
        again = compress_env.compress(network(), make_data(), **arguments)
        pd.testing.assert_frame_equal(first.table, again.table)
        pairs = zip(first.model.parameters(), again.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)

    def test_stopped_run_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments: dict[str, Any] = {"macs": 0.5, **QUICK}
        whole = compress_env.compress(network(), make_data(), out=tmp_path / "whole", **arguments)
        stop_after_state(monkeypatch, "*-weights")
        with pytest.raises(KeyboardInterrupt):
            compress_env.compress(network(), make_data(), out=tmp_path / "run", **arguments)
        again = compress_env.compress(network(), make_data(), out=tmp_path / "run", **arguments)
        assert whole.policy == again.policy
        pairs = zip(whole.model.parameters(), again.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)

    @pytest.mark.parametrize("change", ["setting", "network", "images", "score", "finetune"])
    def test_other_work_is_refused(self, change: str, tmp_path: Path) -> None:
        arguments: dict[str, Any] = {"macs": 0.5, "out": tmp_path / "run", **QUICK}
        compress_env.compress(network(), make_data(), **arguments)
        model, data = network(), make_data()
        if change == "setting":
            arguments["macs"] = 0.6
        elif change == "network":
            model = seeded(PlainNet, 1)
        elif change == "score":
            arguments["score"] = lambda model: 0.5
        elif change == "finetune":
            arguments["finetune"] = lambda model, n_steps: model
        else:
            data = make_data(seed=1)
        with pytest.raises(ValueError, match=r"started with|not what"):
            compress_env.compress(model, data, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "expected a budget"),
        ({"macs": 0.001}, ValueError, r"^macs must be in"),
        ({"size": 0.001}, ValueError, r"^size must be in"),
        ({"macs": 0.5, "learning_rat": 1}, TypeError, "did you mean 'learning_rate'"),
        ({"macs": 0.5, "algo": "cma"}, ValueError, "unknown algorithm 'cma'"),
        ({"macs": 0.5, "effort": "quik"}, ValueError, "did you mean 'quick'"),
        ({"macs": 0.5, "distill": 2.0}, ValueError, "distill must be in"),
    ],
    ids=["no budget", "low macs", "low size", "setting", "algo", "effort", "distill"],
)
def test_bad_input_is_told_in_one_line_and_leaves_nothing(
    arguments: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message) as caught:
        compress_env.compress(network(), make_data(), out=tmp_path / "run", **(QUICK | arguments))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(TypeError, match=r"must be a trained torch\.nn\.Module, got str"):
        compress_env.compress("lenet5", make_data(), macs=0.5)  # type: ignore[arg-type]


def test_effort_evaluations_and_agent_say_who_searches_and_how_long() -> None:
    def plan(**settings: Any) -> tuple[str, int]:
        config = Config(model="lenet5", data="digits", macs=0.5, **settings)
        return config.searcher, config.n_evaluations

    assert plan()[0] == "portfolio"
    assert plan(effort="normal") == ("cma_es", 100)
    assert plan(effort="thorough") == ("cma_es", 300)
    assert plan(evaluations=7) == ("cma_es", 7)
    assert plan(algo="ppo") == ("ppo", 100)
    assert plan(algo="ppo", evaluations=7) == ("ppo", 7)
