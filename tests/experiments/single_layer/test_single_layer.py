"""The single-layer comparison: what is pruned, what is compared, and how it goes on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from compress_env.data.bundle import DataBundle
from compress_env.envs.pruning import PruningEnv, PruningMethod
from compress_env.task.layers import compute_layers, nonzero_weights
from experiments.common import studies
from experiments.common.run_folder import RunFolder
from experiments.single_layer.report import (
    compare,
    compare_at_equal_dense_macs,
    error_increases,
)
from experiments.single_layer.single_layer import (
    Config,
    Measurement,
    Method,
    prune_one_layer,
    run,
)
from tests.fakes import PlainNet, make_data, quiet, seeded, stop_after_state

METHODS = Config().method


def small(out: Path, methods: tuple[Method, ...] = METHODS) -> Config:
    return Config(
        method=methods,
        rates=(0.25, 0.5),
        seeds=(0, 1),
        finetune_steps=2,
        variational_steps=2,
        validation_images=20,
        out=out,
    )


@pytest.mark.parametrize("method", ["magnitude", "channel", "variational", "channel+variational"])
def test_only_one_layer_is_pruned(method: PruningMethod) -> None:
    env = PruningEnv(seeded(PlainNet), make_data(), method=method, finetune_steps=0)
    info = prune_one_layer(env, "fc1", 0.5)
    pruned = env.compressed_model()
    before, after = compute_layers(env.task.model), compute_layers(pruned)
    left = nonzero_weights(pruned, ["fc1"])[0] / before["fc1"].weight.numel()
    assert left == pytest.approx(0.5, abs=0.01)
    assert nonzero_weights(pruned, ["fc2"])[0] == before["fc2"].weight.numel()
    assert after["conv1"].weight.shape == before["conv1"].weight.shape
    assert info["accuracy"] == env.task.score(pruned)
    if method == "variational":
        assert info["dense_macs"] == env.unpruned.macs


def test_a_failing_step_is_an_error() -> None:
    model = seeded(PlainNet)
    env = PruningEnv(model, make_data(), method="magnitude", finetune_steps=0)
    next(env.task.model.parameters()).data.fill_(math.nan)
    with pytest.raises(RuntimeError, match=r"pruning .conv2. at rate 0\.5 failed"):
        prune_one_layer(env, "conv2", 0.5)


@pytest.mark.filterwarnings("ignore:information dropout has not told")
@pytest.mark.usefixtures("small_studies")
def test_every_method_layer_and_rate_is_measured(tmp_path: Path) -> None:
    table = run(small(tmp_path / "out"), quiet())
    pruned = table[table["method"] != "none"]
    assert len(pruned) == 2 * len(METHODS) * 3 * 2
    assert len(table) == len(pruned) + 2
    np.testing.assert_allclose(pruned["weights_removed"], pruned["rate"], atol=0.13)
    is_whole = ~pruned["method"].isin(["magnitude", "channel", "channel+variational"])
    assert (pruned.loc[is_whole, "dense_macs"] == 1.0).all()
    assert (pruned["sparse_macs"] < 1.0).all()
    assert (pruned["sparse_macs"] <= pruned["dense_macs"]).all()
    trained = pruned["method"].isin(["variational", "channel+variational", "shuffled_information"])
    assert trained.equals(pruned["information_std"].notna())
    assert pruned.loc[pruned["overlap"].notna(), "overlap"].between(0, 1).all()
    assert set(pruned.loc[pruned["overlap"].notna(), "method"]) == {
        "variational",
        "shuffled_information",
    }
    report = (tmp_path / "out" / "single_layer.md").read_text()
    assert "| variational, conv2 |" in report and "| shuffled_information 0.5 |" in report
    assert "The claim `variational` < `channel` < `magnitude`" in report
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "config.json",
        "costs.png",
        "errors.png",
        "single_layer.md",
        "table.csv",
    }


def test_calibration_images_are_as_many_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def load(name: str, **settings: object) -> DataBundle:
        asked.append((name, settings["n_calibration"]))
        return make_data()

    monkeypatch.setattr(studies, "load_data", load)
    config = replace(small(tmp_path / "out"), calibration_images=24)
    Measurement(config, RunFolder(tmp_path / "out", config))
    assert asked == [("mnist", 24)]


@pytest.mark.filterwarnings("ignore:information dropout has not told")
@pytest.mark.usefixtures("small_studies")
@pytest.mark.slow
def test_a_stopped_comparison_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(small(tmp_path / "whole", ("magnitude", "variational")), quiet())
    names = stop_after_state(monkeypatch, "seed1-network")
    with pytest.raises(KeyboardInterrupt):
        run(small(tmp_path / "stopped", ("magnitude", "variational")), quiet())
    n_before = len(names)
    run(Config(resume=tmp_path / "stopped"), quiet())
    assert not set(names[:n_before]) & set(names[n_before:])
    whole, stopped = (pd.read_csv(tmp_path / name / "table.csv") for name in ("whole", "stopped"))
    pd.testing.assert_frame_equal(stopped, whole)
    with pytest.raises(ValueError, match="nothing left to measure"):
        run(Config(resume=tmp_path / "stopped"), quiet())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rates": (0.99,)}, r"rates must be in \(0, 0.95\]"),
        ({"rates": ()}, "expected rates that differ, at least one"),
        ({"seeds": (1, 1)}, "expected seeds that differ"),
        ({"seeds": (-1,)}, "seeds must be 0 or more"),
        ({"epochs": -1}, "epochs must be 0 or more"),
        ({"validation_images": 0}, "validation_images must be 1 or more"),
        ({"data": "none"}, "unknown data set"),
    ],
    ids=["rate", "no rate", "same seeds", "negative seed", "epochs", "images", "data"],
)
def test_wrong_settings_are_refused(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(Config(out=tmp_path / "out", **settings), quiet())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:information dropout has not told")
@pytest.mark.usefixtures("small_studies")
def test_shuffled_information_differs_in_nothing_but_the_choice(tmp_path: Path) -> None:
    config = replace(small(tmp_path / "out"), variational_steps=3)
    study = Measurement(config, RunFolder(tmp_path / "out", config))
    network = study.task("cnn4", 0).model
    envs = [study._env(network, network, 0, m) for m in ("variational", "shuffled_information")]
    for env in envs:
        prune_one_layer(env, "conv2", 0.5)
    own, shuffled = (env.elements.last for env in envs)
    assert own is not None and shuffled is not None
    assert torch.equal(own.information.values, shuffled.information.values)
    assert all(torch.equal(x, shuffled.after[name]) for name, x in own.after.items())
    masks = [compute_layers(env.compressed_model())["conv2"].weight == 0 for env in envs]
    assert masks[0].sum() == masks[1].sum() and not torch.equal(*masks)


def test_elements_may_go_with_a_probability(tmp_path: Path) -> None:
    config = replace(small(tmp_path / "out"), temperature=1.0)
    study = Measurement(config, RunFolder(tmp_path / "out", config))
    temperatures = {m: study._settings(m)[1].temperature for m in METHODS}
    assert temperatures.pop("elements_at_random") > 1.0
    assert set(temperatures.values()) == {1.0}
    with pytest.raises(ValueError, match="temperature must be 0 or more, got -1"):
        replace(config, temperature=-1.0).check()


def rows_of(errors: dict[str, list[float]], macs: dict[str, float]) -> pd.DataFrame:
    """Rows of one layer and rate, one error per seed; `none` is the unpruned network."""
    return pd.DataFrame(
        {
            "seed": seed,
            "method": method,
            "layer": "" if method == "none" else "fc1",
            "rate": 0.0 if method == "none" else 0.5,
            "dense_macs": macs.get(method, 1.0),
            "error_before": error,
            "error_after": error,
        }
        for method, values in errors.items()
        for seed, error in enumerate(values)
    )


def test_differences_are_taken_seed_by_seed() -> None:
    rows = rows_of({"none": [0.1, 0.3], "channel": [0.2, 0.44], "magnitude": [0.25, 0.46]}, {})
    increases = error_increases(rows)
    np.testing.assert_allclose(increases["before"], [10, 14, 15, 16])
    difference = compare(increases, "channel", "magnitude", "after")[0.5]
    assert difference.value == pytest.approx(-3.5)
    half = 12.706204736 * 1.5  # t(0.975, 1) sd / sqrt(2)
    assert (difference.low, difference.high) == pytest.approx((-3.5 - half, -3.5 + half))


def test_equal_dense_macs_are_found_between_rates() -> None:
    rows = rows_of(
        {"none": [0.1], "channel": [0.3], "channel+variational": [0.16]},
        {"channel": 0.5, "channel+variational": 0.75},
    )
    increases = error_increases(rows)
    found = compare_at_equal_dense_macs(increases, "channel+variational", "channel", "after")
    assert found[0.5].value == pytest.approx(6.0 - 10.0)  # halfway from 20 points to none
