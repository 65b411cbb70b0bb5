"""The timings: what is measured, and how it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.common.run_folder import RunFolder
from experiments.throughput.throughput import Config, Part, format_table, run, summarize_steps
from experiments.throughput.timing import branching_episodes, new_episodes
from tests.fakes import quiet, stop_after_state

ROOT = Path(__file__).parents[3]


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


def test_episodes_are_timed_with_and_without_a_store(tmp_path: Path) -> None:
    config = Config(
        parts=("episodes",),
        methods=("magnitude",),
        dataset="digits",
        random_weights=True,
        episodes=4,
        finetune_steps=1,
        finetune_at="episode",
        reward_at="episode",
        out=tmp_path / "out",
    )
    rows = pd.DataFrame(run(config, quiet())["episodes"]).set_index(["episodes", "store"])
    for kind in ("all-new", "with-common-beginnings"):
        table = rows.loc[kind]
        assert table.index.tolist() == ["none", "memory", "file"]
        assert (table["steps"] == 3 * 4).all()
        assert table["ratio"]["none"] == table["median_ratio"]["none"] == 1.0
        np.testing.assert_allclose(table["ratio"], table["seconds"] / table["seconds"]["none"])
        assert table["hit_rate"]["none"] == 0
        assert table["hit_rate"]["memory"] == table["hit_rate"]["file"]
    hits = rows["hit_rate"].unstack()["memory"]
    assert hits["with-common-beginnings"] > hits["all-new"]
    text = (tmp_path / "out" / "throughput.md").read_text()
    assert "| episodes, store | ms a step | ratio | median | hits % |" in text


def test_episodes_are_drawn_as_they_are_called() -> None:
    new = new_episodes(20, 6, np.random.default_rng(0))
    assert len(set(new[:, 0])) == 20
    branching = branching_episodes(20, 6, np.random.default_rng(0))
    assert branching.shape == new.shape
    assert len(set(branching[:, 0])) == 1
    assert len({tuple(episode) for episode in branching}) == 20


@pytest.mark.slow
def test_actors_are_timed_and_a_stopped_measurement_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(
        parts=("step", "actors"),
        methods=("magnitude",),
        dataset="digits",
        steps=2,
        actor_steps=8,
        finetune_steps=1,
        out=tmp_path / "out",
    )
    stop_after_state(monkeypatch)
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


def test_candidates_are_timed_one_by_one_and_stacked(tmp_path: Path) -> None:
    config = Config(
        parts=("candidates",),
        random_weights=True,
        methods=("magnitude",),
        dataset="digits",
        flops_budget=0.5,
        candidates=(1, 2),
        candidate_rounds=1,
        finetune_steps=1,
        device="cpu",
        out=tmp_path / "out",
    )
    rows = pd.DataFrame(run(config, quiet())["candidates"])
    assert rows["at_once"].tolist() == [1, 1, 2, 2]
    assert rows["way"].tolist() == ["one by one", "stacked"] * 2
    np.testing.assert_allclose(rows["candidates_per_s"], rows["candidates"] / rows["seconds"])
    one, stacked = (rows[rows["way"] == way]["accuracy"] for way in ("one by one", "stacked"))
    np.testing.assert_allclose(one, stacked, atol=0.01)
    text = (tmp_path / "out" / "throughput.md").read_text()
    assert "| candidates, way | candidates/s | times one by one | accuracy |" in text
    assert "| 2, stacked |" in text


def test_no_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="steps must be 1 or more"):
        run(Config(steps=0, out=tmp_path / "out"), quiet())
    with pytest.raises(ValueError, match="episodes must be 2 or more"):
        run(Config(episodes=1, out=tmp_path / "out"), quiet())
    with pytest.raises(ValueError, match=r"candidates must be 1 or more, got \(4, 0\)"):
        run(Config(candidates=(4, 0), out=tmp_path / "out"), quiet())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["step", "store", "episodes", "actors"])
def test_published_tables_come_of_published_rows(part: Part) -> None:
    files = list((ROOT / "results").glob(f"throughput*/{part}.csv"))
    assert files
    for path in files:
        rows: list[Any] = pd.read_csv(path).to_dict("records")
        table = format_table(part, rows)
        assert table in (path.parent / "throughput.md").read_text(encoding="utf-8")
