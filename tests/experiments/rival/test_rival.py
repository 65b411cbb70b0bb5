"""One way to compress a network: found, fine-tuned, measured, stopped and gone on with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from compress_env.networks.training import Training
from compress_env.task.counting import total_macs
from compress_env.task.task import CompressionTask
from experiments.compress.outcome.exports import Export
from experiments.rival import fastnas, libraries, measures, rival
from experiments.rival.libraries import LIBRARIES, Request
from experiments.rival.rival import Config, run
from experiments.trial import trial
from tests.fakes import EPISODE, NOISY, TINY, BranchedNet, make_data, quiet, seeded, tiny_tasks

PRUNE, QUANTIZE = NOISY
SMALL = Config(
    task=PRUNE, macs=0.5, epochs=1, batch_size=16, evaluations=2, bf16=False, channels_last=False
)


@pytest.fixture(autouse=True)
def _tasks() -> Iterator[None]:
    with tiny_tasks():
        yield


@pytest.fixture
def _unexported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the ONNX files, which take seconds."""
    monkeypatch.setattr(measures, "export_networks", lambda *_: {"network": Export(0, 0.0)})
    times = dict.fromkeys(("latency_1_ms", "latency_64_ms"), 1.0)
    monkeypatch.setattr(
        measures, "time_networks", lambda *_: dict.fromkeys(("baseline", "network"), times)
    )


def play(config: Config) -> dict[str, Any]:
    return run(config, quiet())


def make_request(share: float) -> Request:
    task = CompressionTask(seeded(BranchedNet), make_data(), device="cpu")
    return Request(task, share * total_macs(task.model, task.example_image()), 0, 100)


def test_a_row_says_what_the_network_costs_and_is_worth(tmp_path: Path) -> None:
    out = tmp_path / "rival"
    row = play(replace(SMALL, algo="l1", out=out))
    assert 0.3 < row["macs"] <= 0.5 and row["params"] < 1.0
    assert row["bytes"] == (out / "network.cenv").stat().st_size
    assert row["onnx_bytes"] == (out / "network.onnx").stat().st_size
    assert row["test_error"] == pytest.approx(row["onnx_test_error"])
    assert row["baseline_test_error"] == 0.0
    assert row["n_evaluations"] == 1 and row["search_seconds"] > 0.0
    stored = pd.read_csv(out / "table.csv")
    assert stored["n_macs"].tolist() == [row["n_macs"]]


@pytest.mark.usefixtures("_unexported")
def test_bits_are_decided_on_a_task_of_quantization(tmp_path: Path) -> None:
    config = replace(SMALL, algo="relative_error", task=QUANTIZE, macs=None, size=0.5)
    row = play(replace(config, out=tmp_path / "rival"))
    assert row["bytes_share"] <= 0.5 and row["macs"] == row["params"] == 1.0
    assert row["finetune_seconds"] > 0.0


@pytest.mark.usefixtures("_unexported")
def test_unpruned_is_fine_tuned_and_nothing_else(tmp_path: Path) -> None:
    row = play(replace(SMALL, algo="unpruned", macs=1.0, out=tmp_path / "rival"))
    assert row["macs"] == row["params"] == 1.0
    assert row["n_evaluations"] == row["search_seconds"] == 0
    assert row["finetune_seconds"] > 0.0


@pytest.mark.usefixtures("_unexported")
def test_without_epochs_a_network_stays_as_it_was_found(tmp_path: Path) -> None:
    row = play(replace(SMALL, algo="unpruned", macs=1.0, epochs=0, out=tmp_path / "rival"))
    assert row["finetune_seconds"] == 0.0
    assert row["test_error"] == row["baseline_test_error"]


@pytest.mark.usefixtures("_unexported")
@pytest.mark.parametrize("algo", ["tp_l2", "random"])
def test_a_stopped_run_goes_on_and_finds_nothing_anew(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    epochs, whole = [], Training.run_epoch
    prune, search = LIBRARIES["tp_l2"], trial.run

    def counted(find: Callable[..., Any]) -> Callable[..., Any]:
        def find_and_count(*given: Any) -> Any:
            found.append(algo)
            return find(*given)

        return find_and_count

    def stopping(training: Training) -> float:
        epochs.append(training.n_done)
        if epochs == [0, 1]:
            raise KeyboardInterrupt
        return whole(training)

    two = replace(SMALL, algo=algo, epochs=2)
    row = play(replace(two, out=tmp_path / "whole"))
    monkeypatch.setitem(LIBRARIES, "tp_l2", counted(prune))
    monkeypatch.setattr(trial, "run", counted(search))
    monkeypatch.setattr(Training, "run_epoch", stopping)
    with pytest.raises(KeyboardInterrupt):
        play(replace(two, out=tmp_path / "stopped"))
    again = play(replace(two, resume=tmp_path / "stopped"))
    assert len(found) == 1 and epochs == [0, 1, 1]
    for name in ("test_error", "validation_accuracy", "n_macs", "bytes"):
        assert again[name] == row[name]


def test_a_nominee_that_cannot_be_made_is_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the network before compression would be measured in its place."""

    def fail(*_: Any, **__: Any) -> Any:
        return replace(EPISODE, accuracy=None, error="the loss is not finite")

    monkeypatch.setattr(rival, "play_values", fail)
    with pytest.raises(RuntimeError, match=r"what l1 stands by cannot be made: the loss is not"):
        play(replace(SMALL, algo="l1", out=tmp_path / "rival"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n1\n", "has no column confirmed_values_2"),
        ("confirmed_values_2,n_evaluations,seconds\n", "expected the row of a trial, got 0"),
        ("confirmed_values_2,n_evaluations,seconds\n[],1,1\n", "expected a JSON object of values"),
    ],
    ids=["columns", "rows", "values"],
)
def test_a_damaged_search_is_told_in_a_line(text: str, message: str, tmp_path: Path) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "rival"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "run", stop)
        with pytest.raises(KeyboardInterrupt):
            play(replace(SMALL, algo="l1", out=out))
    (out / "search").mkdir()
    (out / "search" / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        play(Config(resume=out))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tp_l2", "tp_taylor"])
def test_torch_pruning_keeps_to_the_budget(name: str) -> None:
    request = make_request(0.5)
    pruned = LIBRARIES[name](request).model
    image = request.task.example_image()
    assert 0.8 * request.max_macs < total_macs(pruned, image) <= request.max_macs
    assert pruned(image).shape == (1, 3)
    assert total_macs(request.task.model, image) == pytest.approx(2 * request.max_macs)


def test_a_budget_out_of_reach_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "N_STEPS", 4)
    with pytest.raises(ValueError, match=r"Torch-Pruning is left with .* the budget is 1"):
        LIBRARIES["tp_l2"](make_request(0.5)._replace(max_macs=1.0))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(SMALL, size=0.1), "has no budget size, got 0.1"),
        (replace(SMALL, macs=1.5), r"macs must be in \(0, 1\], got 1.5"),
        (replace(SMALL, algo="tp_l3"), "unknown algorithm 'tp_l3'"),
        (replace(SMALL, algo="hawq_v2"), "hawq_v2 chooses bits"),
        (Config("tp_l2", QUANTIZE), r"tp_l2 prunes, .* asks for bits"),
        (replace(SMALL, distill=2.0), r"expected distill in \[0, 1\]"),
        (replace(SMALL, task=TINY[0]), "TinyPrune-v0 has one order of the minibatches"),
        (
            replace(SMALL, env_kwargs='{"flops_budget": 0.3}'),
            r"^another setting asks for the flops_budget 0.5, env_kwargs for 0.3: leave one out$",
        ),
    ],
    ids=["other budget", "share", "name", "stage", "library", "distill", "order", "two budgets"],
)
def test_a_wrong_setting_is_told_in_a_line(config: Config, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        play(replace(config, out=tmp_path / "rival"))
    assert not (tmp_path / "rival").exists()


def test_a_library_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelopt", None)
    with pytest.raises(ImportError, match=r"fastnas needs nvidia-modelopt: pip install 'compress-"):
        LIBRARIES["fastnas"](make_request(0.5))


@pytest.mark.slow
def test_fastnas_keeps_to_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("modelopt.torch.prune")
    monkeypatch.setattr(fastnas, "DIVISOR", 2)
    request = make_request(0.5)
    pruned = LIBRARIES["fastnas"](request)
    assert total_macs(pruned.model, request.task.example_image()) <= request.max_macs
    assert 1 < pruned.n_evaluations <= request.evaluations
    widths = [
        len(fastnas._rules_within(request.task, n)["nn.Conv2d"]["*"]["channels_ratio"])
        for n in (100, 8)
    ]
    assert widths[0] == 20 > widths[1]
    assert LIBRARIES["fastnas"](request._replace(evaluations=8)).n_evaluations <= 8
    with pytest.raises(ValueError, match=r"FastNAS needs at least .* evaluations here, got 1"):
        LIBRARIES["fastnas"](request._replace(evaluations=1))
