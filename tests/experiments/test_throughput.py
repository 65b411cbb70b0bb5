"""The timings: what is measured, and how it is told."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from experiments.run_folder import RunFolder
from experiments.throughput import Config, run, summarize_steps


def quiet() -> Console:
    return Console(file=StringIO())


def test_times_every_step_of_every_method(tmp_path: Path) -> None:
    config = Config(
        parts=("step",), dataset="digits", steps=4, finetune_steps=1, out=tmp_path / "out"
    )
    medians = summarize_steps(run(config, quiet())["step"])
    assert medians.index.tolist() == ["magnitude", "channel"]
    assert medians["statistics"]["channel"] > 0
    assert medians["statistics"]["magnitude"] == 0
    np.testing.assert_allclose(medians["ratio"], medians["step"] / medians["bare"])
    assert "| phase | magnitude | channel |" in (tmp_path / "out" / "throughput.md").read_text()


def test_store_spares_what_it_knows(tmp_path: Path) -> None:
    config = Config(
        parts=("store",), dataset="digits", search_steps=16, finetune_steps=1, out=tmp_path / "out"
    )
    rows = pd.DataFrame(run(config, quiet())["store"]).set_index(["algorithm", "store"])
    for algorithm in ("ppo", "q_critic_ppo"):
        table = rows.loc[algorithm]
        assert table.index.tolist() == ["none", "cold", "warm"]
        assert (table["steps"] == 16).all()
        assert table["hit_rate"]["none"] == 0
        assert table["hit_rate"]["warm"] == 1
        assert table["hit_rate"]["cold"] < 1
        assert table["seconds"]["warm"] < table["seconds"]["none"]


@pytest.mark.timeout(240)
def test_actors_are_timed_and_a_stopped_measurement_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RunFolder.write_state

    def write_and_stop(self: RunFolder, name: str, state: dict[str, object]) -> None:
        write(self, name, state)
        raise KeyboardInterrupt

    config = Config(
        parts=("step", "actors"),
        methods=("magnitude",),
        dataset="digits",
        steps=2,
        actor_steps=8,
        finetune_steps=1,
        out=tmp_path / "out",
    )
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_state", write_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run(config, quiet())
    kept = RunFolder(tmp_path / "out").read_state("step-magnitude")
    assert kept is not None
    results = run(Config(resume=tmp_path / "out"), quiet())
    assert results["step"] == kept["rows"]
    assert [(row["workers"], row["threads"]) for row in results["actors"]] == [
        (1, 1),
        (1, 2),
        (2, 1),
    ]
    assert all(row["steps"] == 8 and row["steps_per_s"] > 0 for row in results["actors"])


def test_selection_is_timed_without_network_and_images(tmp_path: Path) -> None:
    config = Config(
        parts=("lasso",),
        dataset="mnist",
        data_root=tmp_path / "missing",
        lasso_channels=(8, 16),
        lasso_tolerances=(1e-4, 1e-8),
        lasso_repetitions=2,
        out=tmp_path / "out",
    )
    rows = pd.DataFrame(run(config, quiet())["lasso"])
    assert len(rows) == 2 * 2 * 2
    assert (rows["kept"] == rows["channels"] // 2).all()
    assert rows["same"][rows["tolerance"] == 1e-8].all()
    assert (rows[["reduction_ms", "path_ms", "gram_ms", "rows_ms"]] > 0).all(axis=None)
    table = (tmp_path / "out" / "throughput.md").read_text()
    assert "| C, tolerance | reduction | path | Gram | rows | Gram / path |" in table
    assert table.count("| 16, 1e-08 |") == 1


def test_no_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        run(Config(steps=0, out=tmp_path / "out"), quiet())
    with pytest.raises(ValueError, match="lasso_repetitions must be at least 1"):
        run(Config(parts=("lasso",), lasso_repetitions=0, out=tmp_path / "out"), quiet())
    assert list(tmp_path.iterdir()) == []
