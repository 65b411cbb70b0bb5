"""The settings of a search for hyper-parameters."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from compress_env.names import check_name
from experiments.common.checks import check_choices, check_lowest
from experiments.search.entrants import check_packages
from experiments.search.hyperparameters import stored_settings
from experiments.search.names import full_name
from experiments.trial import trial
from experiments.tune.spaces import SPACES, contains

__all__ = ["Config", "import_optuna"]

ALGO_HELP = f"Agents, each of which gives its settings to its family too: {', '.join(SPACES)}."
LOWEST_SEED = 100
"""Lower seeds are those of benchmarks and of all other experiments."""
FIXED = ("task", "seeds", "replay_seeds", "evaluations", "episodes", "seed")


@dataclass(frozen=True)
class Config:
    """Settings of the search."""

    algo: Annotated[tuple[str, ...], tyro.conf.arg(help=ALGO_HELP)] = tuple(SPACES)
    n_trials: int = 12
    """Sets of settings for each agent, the present one included."""
    task: tuple[str, ...] = ("compress_env/PruneVGG8Digits-v0",)
    """Tasks of compress_env, with or without their namespace."""
    seeds: tuple[int, ...] = (100, 101)
    """Seeds of the agent, from 100 on, with which every set is played on each task."""
    replay_seeds: tuple[int, ...] = (200, 201, 202, 203)
    """Fresh seeds, from 100 on, with which the best sets are played again."""
    evaluations: int = 100
    """Distinct networks whose accuracy a search may ask for."""
    episodes: int = 200
    """Most episodes of a search: one that repeats a network costs time, though no evaluation."""
    seed: int = 0
    """Seed of the sampler of sets."""
    jobs: int | None = None
    """Agents at a time; one for each core when not given."""
    out: Path | None = None
    """Folder, to begin or to go on with; a new one under runs/ when not given."""

    def __post_init__(self) -> None:
        """Put the namespace before tasks where it is missing."""
        object.__setattr__(self, "task", tuple(full_name(task) for task in self.task))

    def check(self) -> None:
        """Check everything.

        Raises:
            ValueError: If a setting is wrong.
            ImportError: If a package is missing.
            FileNotFoundError: If data are not there.
        """
        import_optuna()
        check_choices(self, "algo", "task", "seeds", "replay_seeds")
        check_lowest(self, LOWEST_SEED, "seeds", "replay_seeds")
        check_lowest(self, 1, "n_trials", "evaluations", "episodes", "jobs")
        check_lowest(self, 0, "seed")
        if set(self.seeds) & set(self.replay_seeds):
            raise ValueError(f"expected replay_seeds that are not in seeds, got {self.seeds}")
        for algo in self.algo:
            check_name("algorithm", algo, SPACES)
            check_packages(algo)
            if not contains(SPACES[algo], stored_settings(algo)):
                raise ValueError(
                    f"the present settings of {algo} are outside the ranges of "
                    f"experiments/tune/spaces.py: {stored_settings(algo)}"
                )
        for task in self.task:
            trial.make_task(trial.Config(task=task))

    def fixed(self) -> dict[str, Any]:
        """Return what must stay the same when a study goes on, in JSON's types."""
        content: dict[str, Any] = json.loads(
            json.dumps({name: getattr(self, name) for name in FIXED})
        )
        return content


def import_optuna() -> Any:
    """Return the package.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return importlib.import_module("optuna")
    except ImportError:
        raise ImportError("tune needs optuna: pip install 'compress-env[benchmark]'") from None
