"""Volatility of rewards: what is run, what is measured of it, and what that is said to show."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.search.entrants import IMPROVEMENTS, n_envs_of
from experiments.sweep.cells import make_cell
from experiments.sweep.folder import SweepFolder
from experiments.trial import trials
from experiments.trial.trial import Config as Trial
from experiments.volatility import volatility
from experiments.volatility.figures import draw_curves, draw_measures, draw_overestimation
from experiments.volatility.improvements import compare_improvements
from experiments.volatility.measures import cvar, dispersion_within, drawdown
from experiments.volatility.report import (
    _judge,
    compare_volatility,
    format_report,
    summarize,
)
from experiments.volatility.volatility import OF_THE_BEST, Config, Search, measure_trials, run
from tests.fakes import TINY, InProcessPool, quiet, tiny_tasks

AGENTS = ("ddpg", "random")
FLOPS = '{"reward": "flops", "flops_budget": null}'


@pytest.mark.usefixtures("blank_figures")
def test_searches_are_run_measured_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "LocalPool", InProcessPool)
    searches = {
        "reward-pruning": Search("pruning, R_FLOPs", TINY[0], FLOPS),
        "quantization": Search("quantization", TINY[1]),
    }
    monkeypatch.setattr(volatility, "SEARCHES", searches)
    out = tmp_path / "out"
    config = Config(algo=AGENTS, task=tuple(searches), seeds=(0, 1), episodes=3, out=out)
    with tiny_tasks():
        table = run(config, quiet())
        shown = quiet()
        again = run(config, shown)
    assert "8 of 8 cells were finished before" in shown.file.getvalue()  # type: ignore[attr-defined]
    pd.testing.assert_frame_equal(table, again)
    assert len(table) == 8 and set(table["n_episodes"]) == {3.0}
    for row in table.to_dict("records"):
        rewards = pd.read_csv(tmp_path / "out" / row["cell"] / "episodes.csv")["reward"]
        assert row["best_reward"] == pytest.approx(rewards.max())
        assert row["dispersion_within"] == pytest.approx(dispersion_within(rewards))
        assert row["drawdown_cvar"] == pytest.approx(cvar(drawdown(rewards)))
        assert np.isnan(row["q_overestimation"]) == (row["agent"] == "random")
        assert (rewards > 0.0).all() == (row["search"] == "pruning, R_FLOPs")
    assert {path.name for path in (tmp_path / "out").glob("*.*")} >= {
        "rewards.csv.gz",
        "volatility.csv",
        "summary.csv",
        "volatility.md",
        "curves.png",
        "measures.png",
        "overestimation.png",
    }


@pytest.mark.usefixtures("blank_figures")
def test_what_is_published_of_searches_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "LocalPool", InProcessPool)
    searches = {
        "pruning": Search("pruning", TINY[0]),
        "quantization": Search("quantization", TINY[1]),
    }
    monkeypatch.setattr(volatility, "SEARCHES", searches)
    config = Config(algo=AGENTS, task=("pruning",), seeds=(0,), episodes=3)
    published = tmp_path / "published"
    with tiny_tasks():
        table = run(replace(config, out=tmp_path / "out"), quiet())
        published.mkdir()
        for name in ("sweep.json", "sweep.csv", "rewards.csv.gz"):
            (published / name).write_bytes((tmp_path / "out" / name).read_bytes())
        more = replace(config, task=("pruning", "quantization"), out=published)
        shown = quiet()
        both = run(more, shown)
        assert "2 of 4 cells were finished before" in shown.file.getvalue()  # type: ignore[attr-defined]
        alone = run(replace(more, task=("quantization",)), quiet())
    assert not (published / table["cell"][0]).exists()
    pd.testing.assert_frame_equal(both[:2].assign(search=0), table.assign(search=0))
    assert list(both["search"]) == ["pruning", "pruning", "quantization", "quantization"]
    assert set(alone["search"]) == {"quantization"}
    rewards = pd.read_csv(published / "rewards.csv.gz")
    assert len(rewards) == 4
    (published / "rewards.csv.gz").unlink()
    rewards.to_csv(published / "rewards.csv", index=False)
    labels = dict(zip(both["cell"], both["search"], strict=True))
    pd.testing.assert_frame_equal(measure_trials(published, labels)[0], both)
    (published / "rewards.csv").unlink()
    with pytest.raises(ValueError, match=r"has no rewards of cells/pruning-ddpg-seed0"):
        measure_trials(published, dict.fromkeys(both["cell"], "any"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index\n0\n", "has no column reward"),
        ("index,reward\n0,x\n", "row 1: reward must be a finite number, got 'x'"),
        ("index,reward\n0\n", "row 1: expected 2 cells, got 1"),
    ],
    ids=["column", "number", "truncated"],
)
def test_damaged_episodes_are_told_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "cells" / "a").mkdir(parents=True)
    (tmp_path / "cells" / "a" / "episodes.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        volatility._read_rewards(tmp_path, ["cells/a"])
    assert "\n" not in str(caught.value)


def test_a_folder_of_a_benchmark_is_left_as_it_is(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "out")
    with tiny_tasks(), folder.open([make_cell("trial", Trial("random", TINY[0]).complete())]):
        before = folder.marker.read_text()
        with pytest.raises(ValueError, match="holds searches of 300 evaluations, expected search"):
            run(Config(algo=("random",), out=folder.path), quiet())
    assert folder.marker.read_text() == before


def test_nothing_is_told_of_another_network_than_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = ["cells/a", "cells/b"]
    columns = {name: [0.5, 0.5] for name in (*OF_THE_BEST, "final_accuracy")}
    rows = pd.DataFrame({"cell": cells, "agent": "ppo", "seed": [0, 1], **columns})
    rows = rows.assign(actions="0.5 0.5", best_reward=[0.5 + 1e-12, 0.75])
    monkeypatch.setattr(volatility, "read_trials", lambda _: rows)
    monkeypatch.setattr(volatility, "_read_rewards", lambda *_: dict.fromkeys(cells, np.ones(30)))
    table, _ = measure_trials(tmp_path, dict.fromkeys(cells, "any"))
    assert table[list(OF_THE_BEST)].notna().all(axis=1).tolist() == [True, False]
    assert table.loc[1, list(OF_THE_BEST)].isna().all()
    assert table["final_accuracy"].tolist() == [0.5, 0.5]


def test_unknown_searches_are_named() -> None:
    message = r"unknown task 'budget', did you mean 'budget-pruning'\? valid: budget-pruning, "
    with pytest.raises(ValueError, match=message):
        Config(task=("budget",)).cells()


def test_search_that_a_data_set_has_not_is_told() -> None:
    message = (
        "^task vgg8-pruning is for data digits; for mnist there are: budget-pruning, "
        "reward-pruning, quantization$"
    )
    with pytest.raises(ValueError, match=message):
        Config(data="mnist", task=("quantization", "vgg8-pruning")).cells()


def made_up(noise: dict[str, float], overestimation: dict[str, float]) -> tuple[Any, Any]:
    """Rows and curves of agents whose rewards are noise of so much around the seed's level."""
    rng = np.random.default_rng(0)
    curves, rows = {}, []
    for agent, scale in noise.items():
        curves["task", agent] = scale * (rng.normal(size=(12, 40)) + rng.normal(size=(12, 1)))
        for seed, curve in enumerate(curves["task", agent]):
            row = {"search": "task", "agent": agent, "seed": seed, "best_reward": curve.max()}
            row |= {"dispersion_within": dispersion_within(curve), "final_reward": -scale}
            row |= {"drawdown_cvar": cvar(drawdown(curve)), "final_accuracy": 0.9}
            row |= {"validation_accuracy": 0.9}
            error = overestimation.get(agent, np.nan) + 0.01 * seed
            rows.append(row | {"q_overestimation": error, "q_settled": error})
    return pd.DataFrame(rows), curves


def report_of(noise: dict[str, float], overestimation: dict[str, float]) -> str:
    rows, curves = made_up(noise, overestimation)
    return format_report(rows, curves, summarize(rows, curves, list(noise)), "title")


def test_verdicts_follow_the_numbers() -> None:
    text = report_of({"ddpg": 10.0, "ppo": 0.1}, {"ddpg": 1.0, "ppo": -1.0})
    claim = "The reward of the PPO family is less volatile than DDPG's"
    assert f"{claim}: **holds**; 3 of 3 comparisons say so, 0 the opposite." in text
    assert "DDPG overestimates Q: **holds**; 1 of 1" in text
    text = report_of({"ddpg": 0.1, "ppo": 10.0}, {"ddpg": -1.0})
    assert f"{claim}: **fails**; 0 of 3 comparisons say so, 3 the opposite." in text
    assert "DDPG overestimates Q: **fails**" in text
    text = report_of({"ddpg": 1.0, "ppo": 0.01, "q_critic_ppo": 10.0}, {})
    assert f"{claim}: **undecided**; 3 of 6 comparisons say so, 3 the opposite." in text
    assert (
        "DDPG overestimates Q: **not measurable**; no critic of its is known to have settled."
        in text
    )


@pytest.mark.parametrize(
    ("n_wanted", "n_opposite", "verdict"),
    [
        (4, 0, "holds"),
        (2, 1, "holds in part"),
        (1, 2, "fails"),
        (0, 1, "fails"),
        (1, 1, "undecided"),
    ],
)
def test_a_claim_that_more_comparisons_contradict_fails(
    n_wanted: int, n_opposite: int, verdict: str
) -> None:
    rest = (4 - n_wanted - n_opposite) * ["undecided"]
    outcomes = [*n_wanted * ["below"], *n_opposite * ["above"], *rest]
    assert _judge(outcomes, "below", "above").startswith(f"**{verdict}**; {n_wanted} of 4")


def test_a_comparison_that_could_not_come_out_otherwise_is_not_counted() -> None:
    rows, curves = made_up({"ddpg": 10.0, "ppo": 0.1}, {})
    rows = rows[rows["seed"] < 3]
    few = {key: values[:3] for key, values in curves.items()}
    text = format_report(rows, few, summarize(rows, few, ["ddpg", "ppo"]), "title")
    assert "**not measurable**; none of 3 comparisons could have come out otherwise." in text
    assert "(not counted: 3 seeds, fewer than 10)" in text
    outcomes = ["below", "not counted", "below"]
    assert _judge(outcomes, "below", "above").startswith("**holds**; 2 of 2 ")
    assert _judge(outcomes, "below", "above").endswith("0 the opposite, 1 not counted.")


def test_ddpg_is_judged_by_critics_that_have_settled() -> None:
    rows, curves = made_up({"ddpg": 1.0, "ppo": 1.0}, {"ddpg": -1.0, "ppo": 0.0})
    rows["q_settled"] = np.where(rows["agent"] == "ddpg", np.nan, rows["q_settled"])
    summary = summarize(rows, curves, ["ddpg", "ppo"])
    text = format_report(rows, curves, summary, "title")
    assert "DDPG overestimates Q: **not measurable**" in text
    assert "`ddpg` not measurable, `ppo` +0.055 [" in text and "(12 settled)" in text
    is_third = (rows["agent"] == "ddpg") & (rows["seed"] < 4)
    rows.loc[is_third, "q_settled"] = 0.5 + 0.01 * rows.loc[is_third, "seed"]
    text = format_report(rows, curves, summary, "title")
    assert "DDPG overestimates Q: **holds**; 1 of 1" in text and "(4 settled)" in text
    rows.loc[is_third & (rows["seed"] > 0), "q_settled"] = np.nan
    text = format_report(rows, curves, summary, "title")
    assert "**not measurable**; in no search have two of its critics settled" in text
    assert "(1 settled)" in text


def test_improvements_are_switched_off_in_turn() -> None:
    config = Config(improvements=True, task=("vgg8-pruning",), seeds=(0, 1), n_envs=2)
    cells = config.cells()["pruning, VGG8"]
    assert [cell.config.algo for cell in cells[::2]] == list(config.agents) == list(IMPROVEMENTS)
    trial = cells[0].config
    assert (trial.task, trial.n_envs) == ("compress_env/PruneVGG8Digits-v1", 2)
    assert json.loads(trial.env_kwargs) == {"transition_noise": False}
    assert set(Config().cells()) == {"pruning, budget", "pruning, R_FLOPs", "quantization"}


def test_what_an_improvement_does_is_told_seed_by_seed() -> None:
    agents = list(IMPROVEMENTS)
    rows, curves = made_up(dict.fromkeys(agents, 1.0), {})
    summary = summarize(rows, curves, agents)
    text = format_report(rows, curves, summary, "title")
    assert "### task: `q_critic_ppo_paper` without one improvement minus with all" in text
    assert text.count("\n| no ") == 3 and "\n| V critic instead of Q | " in text
    rows.loc[rows["agent"] == agents[2], "best_reward"] += 100.0
    rows.loc[rows["agent"] == agents[3], "final_reward"] -= 100.0 + rows["seed"]
    text = format_report(rows, curves, summary, "title")
    assert "DDPG" not in text.split("## Verdict")[1]
    assert "  - task, no clip: best reward higher" in text
    assert "  - task, no smoothed updates: final reward lower" in text
    found = compare_improvements(rows, "task", agents)
    assert list(found) == agents[1:]
    whole, other = (rows[rows["agent"] == a]["best_reward"] for a in (agents[0], agents[2]))
    expected = other.to_numpy() - whole.to_numpy()
    assert found[agents[2]]["best_reward"].value == pytest.approx(expected.mean())
    assert found[agents[2]]["best_reward"].side == "above"
    assert compare_improvements(rows, "task", agents[1:]) != {}
    assert compare_improvements(rows[rows["agent"] != agents[0]], "task", agents) == {}


def test_figures_show_every_seed() -> None:
    noise = {"ddpg": 1.0, "ppo": 2.0, "random": 3.0}
    rows, curves = made_up(noise, {"ddpg": 1.0, "ppo": 0.5})
    summary = summarize(rows, curves, list(noise))
    panels = draw_curves(curves, list(noise), "title").axes
    assert [panel.get_title() for panel in panels] == list(noise)
    assert all(len(panel.lines) == 12 + 1 for panel in panels)  # and the mean
    shown = draw_measures(rows, summary, list(noise), "title").axes
    assert shown[0].lines[0].get_xdata() == pytest.approx(summary["dispersion_across"])
    assert all(
        sum(np.size(line.get_xdata()) == 12 for line in panel.lines) == 3 for panel in shown[1:]
    )
    rows.loc[rows["agent"] == "random", "q_overestimation"] = np.nan
    (panel,) = draw_overestimation(rows, list(noise), "title").axes
    assert [label.get_text() for label in panel.get_yticklabels()] == ["ddpg", "ppo"]


def test_titles_of_panels_do_not_run_into_each_other() -> None:
    names = [*IMPROVEMENTS, "my_module:" + "A" * 30]
    _, curves = made_up(dict.fromkeys(names, 1.0), {})
    titles = [panel.get_title() for panel in draw_curves(curves, names, "title").axes]
    assert ["".join(title.split("\n")) for title in titles] == names
    assert max(len(line) for title in titles[:-1] for line in title.split("\n")) <= 20


def test_raw_q_is_compared_with_ppo() -> None:
    noise = {"ppo": 1.0, "q_critic_ppo": 1.0, "q_critic_ppo_q": 5.0}
    rows, curves = made_up(noise, {})
    text = format_report(rows, curves, summarize(rows, curves, list(noise)), "title")
    assert "With raw Q as advantage PPO is worse than with its own: **undecided**; 1 of 2" in text
    curves["task", "q_critic_ppo"][:] = -9.0
    text = format_report(rows, curves, summarize(rows, curves, list(noise)), "title")
    assert "task: never against" in text and "(not reached from 12 of 12 seeds)" in text


def test_comparison_is_signed_and_per_seed() -> None:
    rows, curves = made_up({"ddpg": 1.0, "ppo": 3.0}, {})
    found = compare_volatility(rows, curves, "task", "ppo", "ddpg")
    mine, other = (rows[rows["agent"] == agent]["drawdown_cvar"] for agent in ("ppo", "ddpg"))
    assert found["drawdown"].value == pytest.approx(mine.mean() - other.mean())
    assert list(found) == ["across seeds", "within runs", "drawdown"]
    assert all(difference.value > 0.0 for difference in found.values())


def test_agents_with_fewer_seeds_are_compared_in_those_that_both_have() -> None:
    noise = {"ddpg": 1.0, "ppo": 2.0, "q_critic_ppo": 3.0, "q_critic_ppo_q": 4.0}
    rows, curves = made_up(noise, {})
    fewer = rows[(rows["agent"] != "q_critic_ppo_q") | rows["seed"].between(3, 7)]
    curves["task", "q_critic_ppo_q"] = curves["task", "q_critic_ppo_q"][3:8]
    text = format_report(fewer, curves, summarize(fewer, curves, list(noise)), "title")
    assert "12 seeds (`q_critic_ppo_q` 5), 40 episodes each." in text
    assert "`q_critic_ppo_q` minus `ddpg`: across seeds" in text and "(not counted: 5 seeds" in text
    found = compare_volatility(fewer, curves, "task", "q_critic_ppo_q", "ddpg")["drawdown"]
    by_agent = {agent: mine.set_index("seed") for agent, mine in rows.groupby("agent")}
    mine, other = (by_agent[a].loc[3:7, "drawdown_cvar"] for a in ("q_critic_ppo_q", "ddpg"))
    assert found.value == pytest.approx((mine - other).mean())
    agents = list(IMPROVEMENTS)
    rows, _ = made_up(dict.fromkeys(agents, 1.0), {})
    fewer = rows[(rows["agent"] != agents[0]) | (rows["seed"] != 0)]
    whole, other = (rows[(rows["agent"] == a) & (rows["seed"] > 0)] for a in agents[:2])
    expected = other["best_reward"].mean() - whole["best_reward"].mean()
    found = compare_improvements(fewer, "task", agents)[agents[1]]["best_reward"]
    assert found.value == pytest.approx(expected)


def test_cells_tell_searches_of_one_task_apart() -> None:
    cells = Config(data="mnist", algo=("ppo",), data_root=Path("/data")).cells()
    assert [len(mine) for mine in cells.values()] == [10, 10, 10]
    names = [cell.name for mine in cells.values() for cell in mine]
    assert len(set(names)) == 30 and names[10] == "pruning_R_FLOPs-ppo-seed0"
    trial = cells["pruning, R_FLOPs"][0].config
    assert trial.task == "compress_env/PruneLeNet5MNIST-v0"
    assert json.loads(trial.env_kwargs) == {"reward": "flops", "flops_budget": None}
    whole = Config().cells()["quantization"]
    assert len(whole) == 8 * 20
    papers = [cell.config for cell in whole if cell.config.algo == "q_critic_ppo_paper"]
    assert len(papers) == 20 and {n_envs_of(c.algo, c.n_envs) for c in papers} == {4}


def test_settings_of_one_agent_replace_the_stored_ones() -> None:
    config = Config(algo=("ppo", "ddpg"), seeds=(0,), settings='{"ppo": {"n_epochs": 3}}')
    stored = Config(algo=("ppo", "ddpg"), seeds=(0,)).cells()["quantization"]
    ppo, ddpg = config.cells()["quantization"]
    now, then = (json.loads(cell.config.settings) for cell in (ppo, stored[0]))
    assert now == then | {"n_epochs": 3}
    assert ppo.config != stored[0].config and ddpg == stored[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algo": ("magic",)}, "unknown algorithm 'magic'"),
        ({"algo": ()}, "expected algo that differ"),
        ({"algo": ("ppo", "uniform")}, "expected agents of many episodes, got uniform"),
        ({"episodes": 1}, "episodes must be 2 or more, got 1"),
        ({"seeds": (0, 0)}, "expected trials that differ"),
        ({"jobs": 0}, "jobs must be 1 or more"),
        ({"settings": "[]"}, "settings must be a JSON object, got '\\[\\]'"),
        ({"settings": '{"ppo": 1}'}, "settings must be a JSON object of objects"),
        ({"settings": "{"}, "settings must be a JSON object, got '{'"),
        ({"settings": '{"magic": {}}'}, "unknown agent in settings 'magic'; valid: ddpg"),
        ({"settings": '{"ppo": {"magic": 1}}'}, "magic"),
        ({"improvements": True, "algo": ("ppo",)}, "improvements has agents of its own"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_bad_input_ends_with_one_line_and_no_folder(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(replace(Config(out=tmp_path / "out"), **settings), quiet())
    assert not (tmp_path / "out").exists()
