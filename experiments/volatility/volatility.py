"""Is the reward of PPO and its kin less volatile than DDPG's, and does DDPG overestimate Q?

After Fig. 2 of Zhan, Lin & Cao 2021 (arXiv 1912.02254). DDPG, TD3, SAC, PPO, PPO with a Q-critic
(advantages Q minus a baseline, and raw Q; and the agent as the paper has it) and random search
compress LeNet-5: pruning under a budget of multiply-accumulates, pruning without one for the reward
R_FLOPs, and quantization. Each search is a trial (`experiments.trial`) of so many episodes; they
run in several processes, and the same command with the same --out goes on where it was stopped.
What is measured of the reward during training is in `experiments.volatility.measures`, what the
critics promised in `agents.OverestimationCallback`. Rewards are given after each layer, as in the
paper; an episode's is their sum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console

from compress_env.names import check_name
from experiments.common.checks import check_choices, check_lowest, read_object
from experiments.common.cli.command import run_command
from experiments.common.cli.given import is_given
from experiments.common.drawing.outputs import write_outputs, write_table
from experiments.common.run_folder import run_path
from experiments.common.stored import find_stored, parse, read_table
from experiments.search.entrants import IMPROVEMENTS, SINGLE
from experiments.sweep.cells import Cell, cell_name
from experiments.sweep.folder import SweepFolder
from experiments.trial.trial import Config as Trial
from experiments.trial.trial import make_task
from experiments.trial.trials import TOLERANCE, read_trials, run_trials, with_stored
from experiments.volatility.figures import draw_curves, draw_measures, draw_overestimation
from experiments.volatility.measures import cvar, dispersion_within, drawdown
from experiments.volatility.report import Curves, format_report, summarize

__all__ = ["OF_THE_BEST", "Config", "Search", "main", "measure_trials", "run"]

DATASETS = {"digits": "Digits", "mnist": "MNIST"}
N_SEEDS = {"digits": 20, "mnist": 10}
OF_THE_BEST = (
    "validation_accuracy",
    "test_accuracy",
    "reward",
    "cost",
    "cost_fraction",
    "dense_macs",
    "dense_params",
    "sparse_macs",
    "sparse_params",
    "actions",
)
"""Columns that tell of the best network."""
REWARDS = "rewards.csv"
"""Rewards of all episodes, a line for each search; compressed."""


class Search(NamedTuple):
    """What is searched for."""

    label: str
    """What tables, figures and cells call it."""
    task: str
    """Id of a task, with the data set's name left out."""
    env_kwargs: str = "{}"
    """Keyword arguments in place of the task's own, JSON."""
    data: tuple[str, ...] = tuple(DATASETS)
    """Data sets that there is such a task for."""

    def cell(self, agent: str, seed: int) -> str:
        """Return the name of a cell."""
        return cell_name(self.label.replace(", ", "_"), agent, f"seed{seed}")


PRUNING = "compress_env/PruneLeNet5{}-v0"
R_FLOPS = '{"reward": "flops", "flops_budget": null}'
SEARCHES = {
    "budget-pruning": Search("pruning, budget", PRUNING),
    "reward-pruning": Search("pruning, R_FLOPs", PRUNING, R_FLOPS),
    "quantization": Search("quantization", "compress_env/QuantizeLeNet5{}-v0"),
    # With drawn orders a search would end with a confirmation, which says nothing of its reward.
    "vgg8-pruning": Search(
        "pruning, VGG8", "compress_env/PruneVGG8{}-v1", '{"transition_noise": false}', ("digits",)
    ),
}
"""By the name that `--task` has for it."""
OF_LENET5 = tuple(SEARCHES)[:3]


@dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    data: Literal["digits", "mnist"] = "digits"
    """Data set."""
    algo: tuple[str, ...] = (
        "ddpg",
        "td3",
        "sac",
        "ppo",
        "q_critic_ppo",
        "q_critic_ppo_q",
        "q_critic_ppo_paper",
        "random",
    )
    """Agents by name."""
    improvements: bool = False
    """In place of `algo`, the paper's agent, and each of its four improvements switched off in
    turn."""
    task: tuple[str, ...] = OF_LENET5
    """What is searched for: budget-pruning (under a budget of multiply-accumulates), reward-pruning
    (without one, for R_FLOPs) and quantization of LeNet-5; vgg8-pruning (a deep network, digits
    alone, one order of the minibatches)."""
    seeds: tuple[int, ...] = ()
    """Seeds of the agents; 0 to 19 for digits and 0 to 9 for MNIST when not given."""
    episodes: int = 200
    """Episodes of each search."""
    n_envs: int | None = None
    """Environments that a search steps at once, synchronously, see `experiments.trial`; when not
    given, 4 for the paper's agent and 1 for others."""
    jobs: int | None = None
    """Searches at a time; one for each core when not given."""
    settings: str = "{}"
    """Hyper-parameters in place of those in hyperparameters.json, by agent, a JSON object."""
    data_root: Path | None = None
    """Folder of the data set's files."""
    out: Path | None = None
    """Folder, to begin or to go on with; a new one under runs/ when not given."""

    @property
    def agents(self) -> tuple[str, ...]:
        """Agents that are compared."""
        return tuple(IMPROVEMENTS) if self.improvements else self.algo

    def cells(self) -> dict[str, list[Cell]]:
        """Make the trials by what is searched for.

        Raises:
            ValueError: If a setting is wrong.
        """
        check_choices(self, "algo", "task")
        if self.improvements and is_given(self, "algo"):
            raise ValueError("improvements has agents of its own: leave out algo")
        searches = [self._search_of(name) for name in self.task]
        single = [agent for agent in self.agents if agent in SINGLE]
        if single:
            raise ValueError(f"expected agents of many episodes, got {single[0]}, which has one")
        check_lowest(self, 1, "n_envs", "jobs")
        check_lowest(self, 2, "episodes")
        given = self._read_settings()
        return {search.label: self._cells_of(search, given) for search in searches}

    def _search_of(self, task: str) -> Search:
        search = SEARCHES[check_name("task", task, SEARCHES)]
        if self.data not in search.data:
            mine = ", ".join(name for name, each in SEARCHES.items() if self.data in each.data)
            raise ValueError(
                f"task {task} is for data {', '.join(search.data)}; for {self.data} there are: "
                f"{mine}"
            )
        return search

    def _read_settings(self) -> dict[str, dict[str, Any]]:
        given = read_object(self, "settings")
        if not all(isinstance(x, dict) for x in given.values()):
            raise ValueError(f"settings must be a JSON object of objects, got {self.settings!r}")
        for agent in given:
            check_name("agent in settings", agent, self.agents)
        return given

    def _cells_of(self, search: Search, given: Mapping[str, dict[str, Any]]) -> list[Cell]:
        root = None if self.data_root is None else self.data_root.absolute()
        task = search.task.format(DATASETS[self.data])
        seeds = self.seeds or tuple(range(N_SEEDS[self.data]))
        return [
            Cell(
                search.cell(agent, seed),
                "trial",
                Trial(
                    agent,
                    task,
                    seed,
                    evaluations=None,
                    episodes=self.episodes,
                    env_kwargs=search.env_kwargs,
                    settings=json.dumps(given.get(agent, {})),
                    n_envs=self.n_envs,
                    data_root=root,
                ).complete(),
            )
            for agent in self.agents
            for seed in seeds
        ]


def run(config: Config, console: Console) -> pd.DataFrame:
    """Run all searches, or go on with them; measure, and write figures and the report.

    Returns:
        One row for each search.

    Raises:
        ValueError: If a setting is wrong; nothing has been written then.
        FileNotFoundError: If data are not there; nothing has been written then.
        RuntimeError: If a search has failed.
        Interrupted: If somebody stops it.
    """
    path = run_path("volatility", config.out).absolute()
    folder = SweepFolder(path, rows_suffice=find_stored(path / REWARDS) is not None)
    by_label = config.cells()
    cells = with_stored(folder, [cell for cells in by_label.values() for cell in cells])
    for cell in cells:
        if cell.config.evaluations is not None:
            raise ValueError(
                f"{str(path)!r} holds searches of {cell.config.evaluations} evaluations, expected "
                "searches of episodes; choose another folder"
            )
    for mine in by_label.values():
        make_task(mine[0].config)  # trains its network, if need be, before others ask for it
    failed = run_trials(cells, folder, console, jobs=config.jobs)
    if failed:
        name, error = failed[0]
        raise RuntimeError(f"{len(failed)} searches have failed; {name}: {error}")
    labels = {f"cells/{cell.name}": label for label, mine in by_label.items() for cell in mine}
    _publish_rewards(folder.path)
    table, curves = measure_trials(folder.path, labels)
    _write(folder.path, config, table, curves, console)
    return table


def measure_trials(path: Path, labels: Mapping[str, str]) -> tuple[pd.DataFrame, Curves]:
    """Measure the reward of each search.

    Args:
        path: Folder of the trials.
        labels: What is searched for, by the folder of a trial.

    Returns:
        One row for each search, without what it tells of another network than the one with the
        best reward, and the rewards of all episodes by (what is searched for, agent),
        (S, T), seeds in the order of the rows.
    """
    trials = read_trials(path)
    trials = trials[trials["cell"].isin(list(labels))].sort_values("seed", kind="stable")
    rewards = _read_rewards(path, trials["cell"].tolist())
    trials.insert(0, "search", trials["cell"].map(labels))
    # Known is the most accurate network instead, of which nothing is to be said here.
    is_other = trials["best_reward"] - trials["reward"] > TOLERANCE
    trials[list(OF_THE_BEST)] = trials[list(OF_THE_BEST)].mask(is_other)
    trials["dispersion_within"] = [dispersion_within(rewards[cell]) for cell in trials["cell"]]
    trials["drawdown_cvar"] = [cvar(drawdown(rewards[cell])) for cell in trials["cell"]]
    curves: dict[tuple[str, str], NDArray[np.float64]] = {}
    for (label, agent), rows in trials.groupby(["search", "agent"], sort=False):
        curves[str(label), str(agent)] = np.stack([rewards[cell] for cell in rows["cell"]])
    order = list(dict.fromkeys(labels.values()))
    trials["search"] = pd.Categorical(trials["search"], order)
    return trials.sort_values(["search", "agent", "seed"], ignore_index=True), curves


def _read_rewards(path: Path, cells: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Read the rewards of all episodes by cell, (T,) each: the cell's own, or what is published.

    Raises:
        ValueError: If those of a cell are not there.
    """
    texts: dict[str, str] = {}
    if find_stored(path / REWARDS) is not None:
        known = read_table(path / REWARDS, ("cell", "rewards"))
        texts = dict(zip(known["cell"], known["rewards"], strict=True))
    rewards = {}
    for cell in cells:
        episodes = path / cell / "episodes.csv"
        if not episodes.exists() and cell not in texts:
            raise ValueError(f"{str(path)!r} has no rewards of {cell}")
        rewards[cell] = _own_rewards(episodes) if episodes.exists() else _numbers(texts[cell])
    return rewards


def _own_rewards(path: Path) -> NDArray[np.float64]:
    rows = parse(path, read_table(path, ("reward",)), {"reward": float})
    rewards: NDArray[np.float64] = rows["reward"].to_numpy(np.float64)
    return rewards


def _numbers(text: str) -> NDArray[np.float64]:
    return np.array(text.split(), np.float64)


def _publish_rewards(path: Path) -> None:
    """Write the rewards of all episodes of all searches in a folder into one file."""
    rewards = _read_rewards(path, read_trials(path)["cell"].tolist())
    rows = [(cell, " ".join(map(repr, values.tolist()))) for cell, values in rewards.items()]
    write_table(path / f"{REWARDS}.gz", pd.DataFrame(rows, columns=["cell", "rewards"]))


def _write(
    path: Path, config: Config, table: pd.DataFrame, curves: Curves, console: Console
) -> None:
    agents, title = list(config.agents), f"{_networks(config)} on {config.data}"
    summary = summarize(table, curves, agents)
    report = format_report(table, curves, summary, title)
    figures = {
        "curves.png": draw_curves(curves, agents, title),
        "measures.png": draw_measures(table, summary, agents, title),
        "overestimation.png": draw_overestimation(table, agents, title),
    }
    tables = {"volatility.csv": table, "summary.csv": summary}
    write_outputs(path, "volatility", report, console, tables=tables, figures=figures)


def _networks(config: Config) -> str:
    names = {"VGG8" if name not in OF_LENET5 else "LeNet-5" for name in config.task}
    return " and ".join(sorted(names))


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "")
