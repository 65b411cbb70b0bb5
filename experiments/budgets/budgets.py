"""One policy for several budgets of a network, against a search for each and the rule alone.

`python -m experiments.budgets --budgets 0.2 0.35 0.5 0.7 --evaluations 400 --out runs/budgets` lets
a learner around a rule search all budgets at once (`SeveralBudgets`: the budget of an episode is
drawn, and observed) with so many evaluations in all, and each budget alone with an equal part of
them (100 here). All are trials (`experiments.trial`), nominated with the last fifth of their
evaluations, an equal part of it for each budget, and confirmed under further orders on test images;
so is what the rule gives at each budget. `budgets.md` and `budgets.png` compare them. The same
command goes on where it was stopped; other seeds with the same `--out` are added.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
from rich.console import Console

from experiments.budgets.report import draw_budgets, format_budgets, read_budgets
from experiments.common.checks import check_choices, check_lowest
from experiments.common.cli.command import ending_in_one_line
from experiments.common.cli.parsing import parse_command
from experiments.common.drawing.outputs import write_outputs
from experiments.common.run_folder import run_path
from experiments.search.entrants import rule_of
from experiments.search.names import full_name, short_name, task_id
from experiments.search.observing import sees_context
from experiments.sweep.cells import Cell, cell_name
from experiments.sweep.folder import SweepFolder
from experiments.sweep.pools import Outcome
from experiments.trial.trial import Config as Trial
from experiments.trial.trials import run_trials, with_stored

__all__ = ["Config", "main", "run"]

KEYWORDS = ("flops_budget", "params_budget", "filters_budget", "size_budget")
"""Arguments that a task's budget may be given by; of several, the first is the one that changes."""


@dataclass(frozen=True)
class Config:
    """Settings of a comparison."""

    algo: str = "q_critic_ppo+kl_curve"
    """Learner around a rule, AGENT+RULE."""
    task: str = "compress_env/PruneResNet20Digits-v1"
    """Task that draws the order of the minibatches, with or without its namespace."""
    budgets: tuple[float, ...] = (0.2, 0.35, 0.5, 0.7)
    """Budgets in place of the task's own, fractions of what the uncompressed network costs."""
    evaluations: int = 400
    """Distinct networks whose accuracy one policy for all budgets may ask for; a search for one
    budget has an equal part."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the learners; the rule is run once."""
    settings: str = "{}"
    """Hyper-parameters of the learner in place of the stored ones, a JSON object."""
    shaping: float = 0.0
    """Weight of the saliency that decisions lose in the learner's reward (`experiments.trial`)."""
    jobs: int | None = None
    """Trials at a time; one for each core when not given."""
    data_root: Path | None = None
    """Folder of the data set's files."""
    out: Path | None = None
    """Folder, to begin or to go on with; a new one under runs/ when not given."""

    def cells(self) -> list[Cell]:
        """Make all trials: the rule's first, then seed by seed.

        Raises:
            ValueError: If a setting is wrong.
        """
        check_choices(self, "budgets", "seeds")
        check_lowest(self, 1, "evaluations", "jobs")
        keyword, part = self._keyword(), self.evaluations // len(self.budgets)
        if part < 1:
            raise ValueError(
                f"expected an evaluation for each of {len(self.budgets)} budgets, got "
                f"{self.evaluations} in all"
            )
        rule = rule_of(self.algo)
        assert rule is not None
        cells = [
            self._cell("rule", rule, min(self.seeds), part, {keyword: budget})
            for budget in self.budgets
        ]
        for seed in self.seeds:
            cells.append(self._cell("one", self.algo, seed, self.evaluations))
            cells += [
                self._cell("each", self.algo, seed, part, {keyword: budget})
                for budget in self.budgets
            ]
        return cells

    def _keyword(self) -> str:
        """Return the argument of the task's budget; check that task and learner will do."""
        spec = gym.spec(task_id(self.task))
        if not sees_context(self.algo):
            raise ValueError(
                f"algo must be a learner around a rule, as q_critic_ppo+kl_curve, got {self.algo}"
            )
        keyword = next((name for name in KEYWORDS if name in spec.kwargs), None)
        if keyword is None or not spec.kwargs.get("transition_noise"):
            raise ValueError(
                "task must be one with a budget that draws the order of the minibatches, as those "
                f"of the suite, got {self.task}"
            )
        return keyword

    def _cell(
        self,
        kind: str,
        algo: str,
        seed: int,
        evaluations: int,
        changed: dict[str, float] | None = None,
    ) -> Cell:
        """Make a trial, at one budget of the task or, with none given, at all."""
        is_rule = kind == "rule"
        trial = Trial(
            algo,
            full_name(self.task),
            seed,
            evaluations=evaluations,
            env_kwargs=json.dumps(changed or {}),
            settings="{}" if is_rule else self.settings,
            shaping=0.0 if is_rule else self.shaping,
            budgets=() if changed else self.budgets,
            data_root=None if self.data_root is None else self.data_root.absolute(),
        ).complete()
        budget = [f"{value:g}" for value in (changed or {}).values()]
        task = short_name(self.task)
        return Cell(cell_name("trial", kind, algo, task, *budget, f"seed{seed}"), "trial", trial)


def run(config: Config, console: Console) -> list[Outcome]:
    """Run a comparison, or go on with one, and write its table and figure.

    Returns:
        The trials that have failed.

    Raises:
        ValueError: If a setting is wrong; nothing has been written then.
        FileNotFoundError: If data are not there.
        Interrupted: If somebody stops it.
    """
    folder = SweepFolder(run_path("budgets", config.out).absolute(), rows_suffice=True)
    cells = with_stored(folder, config.cells())
    failed = run_trials(cells, folder, console, jobs=config.jobs)
    if len(failed) < len(cells):
        rows = read_budgets(folder)
        figures = {"budgets.png": draw_budgets(rows)}
        write_outputs(folder.path, "budgets", format_budgets(rows), console, figures=figures)
    return failed


def main() -> None:
    """Run from the command line; exit with 1 if a trial has failed."""
    with ending_in_one_line():
        failed = run(parse_command(Config, sys.argv[1:], __doc__), Console())
    sys.exit(1 if failed else 0)
