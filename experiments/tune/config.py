"""The settings of a search for hyper-parameters."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from compress_env.names import check_name
from experiments.common.checks import check_choices, check_lowest
from experiments.search.entrants import PRIORS, can_act, check_packages
from experiments.search.hyperparameters import stored_settings
from experiments.search.names import full_name
from experiments.trial import trial
from experiments.tune.spaces import INFORMED_SPACES, SPACES, Space, contains, space_of

__all__ = ["Config", "import_optuna"]

ALGO_HELP = (
    f"Agents, each of which gives its settings to its family too: {', '.join(SPACES)}; around a "
    f"rule {', '.join(INFORMED_SPACES)}."
)
LOWEST_SEED = 100
"""Lower seeds are those of benchmarks and of all other experiments."""
FIXED = ("task", "seeds", "replay_seeds", "evaluations", "episodes", "seed", "rule", "objective")
Objective = Literal["anytime", "confirmed"]


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
    rule: tuple[str, ...] = ()
    """Rules that the agents search around, on each task the first of its stage; then what is found
    is for informed.json. None for blind agents."""
    objective: Objective = "anytime"
    """What a search is judged by: the mean of its best validation accuracy while it goes on, or
    the validation accuracy of what it stands by under orders that it has not seen, the mean over
    its budgets (30 and 100 of 100 evaluations)."""
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
        rules = dict.fromkeys(name for names in PRIORS.values() for name in names)
        for rule in self.rule:
            check_name("rule", rule, rules)
        for algo in self.algo:
            check_name("algorithm", algo, INFORMED_SPACES if self.rule else SPACES)
            check_packages(algo)
            stored = self.present(algo)
            if not contains(self.space(algo), stored):
                raise ValueError(
                    f"the present settings of {algo} are outside the ranges of "
                    f"experiments/tune/spaces.py: {stored}"
                )
        for task in self.task:
            name = self.name_on(self.algo[0], task)
            env = trial.make_task(trial.Config(name, task))
            if self.objective == "confirmed" and not env.transition_noise:
                raise ValueError(f"nothing is confirmed on {task}, which draws no orders")

    def name_on(self, algo: str, task: str) -> str:
        """Return an agent's name on a task: with a rule of its stage where there are rules.

        Raises:
            ValueError: If there are rules, none of that stage.
        """
        if not self.rule:
            return algo
        found = next((f"{algo}+{r}" for r in self.rule if can_act(f"{algo}+{r}", task)), None)
        if found is None:
            raise ValueError(f"none of the rules {', '.join(self.rule)} is for {task}")
        return found

    def present(self, algo: str) -> dict[str, Any]:
        """Return the stored settings of an agent, around a rule where there are rules."""
        return stored_settings(f"{algo}+{self.rule[0]}" if self.rule else algo)

    def space(self, algo: str) -> Space:
        """Return what is searched for an agent."""
        return space_of(algo, is_informed=bool(self.rule))

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
