"""Whether pruning rates by importance help, and what they cost.

At 30, 50 and 70 % of the filters removed: AFIE (arXiv 2208.06660), SBPF (arXiv 2208.04588), the
same rate everywhere, random search and a reinforcement learner, from a network after one epoch and
from the fully trained one. What counts as removed is the same for all of them: filters, or with
`--unit macs` multiply-accumulates, as the same share of filters can be very different shares of
these. Channels are selected inside a layer in the same way, and every pruned network gets the same
fine-tuning. Random search and the learner may evaluate as many networks as
SBPF does, unless told otherwise; the best episode by reward is taken. Test images are
looked at once, at the end. The time that a method takes to arrive at its rates, and the networks
that it evaluates for that, stand beside the errors.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from itertools import product
from time import perf_counter
from typing import Any, Literal

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from agents import AFIE, SBPF, Random
from compress_env.envs.pruning import PruningEnv, PruningMethod
from compress_env.names import check_name
from compress_env.seeding import derive_generator
from compress_env.task.task import CompressionTask
from experiments.common.checks import check_choices, check_lowest
from experiments.common.cli.command import run_command
from experiments.common.studies import Rows, Study, StudyConfig, run_study
from experiments.common.training import train_with_marks
from experiments.importance_benefit.report import draw_errors, format_report
from experiments.search.algorithms import check_algorithm, make_learner
from experiments.search.episodes import EpisodeLog, best_episode, run_learner, run_policy
from experiments.search.playing import play_actions
from experiments.search.uniform import uniform_policy

__all__ = ["Config", "Measurement", "main", "run"]

BASELINE = "uniform"
SELECTIONS = ("magnitude", "channel", "random")


@dataclass(frozen=True, kw_only=True)
class Config(StudyConfig):
    """Settings of the comparison."""

    model: str = "lenet5"
    """Named network."""
    validation_images: int | None = 1000
    """Images that networks are evaluated on; all validation images when not given."""
    algo: tuple[str, ...] = ("uniform", "afie", "sbpf", "random", "q_critic_ppo")
    """Names of the main job's algorithms; uniform, which differences are taken from, among them."""
    targets: tuple[float, ...] = (0.3, 0.5, 0.7)
    """Fractions of the filters, or multiply-accumulates, that go."""
    unit: Literal["filters", "macs"] = "filters"
    """What the targets count."""
    epochs: tuple[int, ...] = (1, 8)
    """Epochs of one training after which the network is pruned; the last one ends it."""
    evaluations: int | None = None
    """Networks that random search and learners evaluate; as many as SBPF when not given."""
    selection: PruningMethod = "magnitude"
    """How channels are selected inside a layer: magnitude, channel (LASSO) or random."""
    damage: float = 1.0
    """Standard deviation of SBPF's noise in those of a layer's weights."""
    n_trials: int = 10
    """Trials of SBPF for each layer and round."""
    n_rounds: int = 1
    """Rounds of SBPF."""
    finetune_steps: int = 5
    """Minibatches of fine-tuning after each layer of an episode."""
    final_finetune_steps: int = 200
    """Minibatches of fine-tuning of each pruned network, learning rate annealed."""

    def check(self) -> None:
        """Check what nothing else checks.

        Raises:
            ValueError: If a setting is out of range.
        """
        super().check()
        check_choices(self, "algo", "targets", "epochs")
        check_lowest(self, 0, "epochs")
        check_lowest(self, 1, "evaluations")
        for method in self.algo:
            check_algorithm(method, takes_rule=False)
        if BASELINE not in self.algo:
            raise ValueError(f"algo must hold {BASELINE!r}, got {self.algo}")
        check_name("selection", self.selection, SELECTIONS)
        if not all(0.0 < target < 1.0 for target in self.targets):
            raise ValueError(f"targets must be in (0, 1), got {self.targets}")


class Measurement(Study[Config]):
    """Trains the networks of each seed, and prunes them by each method to each target."""

    name = "importance_benefit"

    def measure(self, model: str, seed: int) -> Rows:
        """Measure the unpruned network and every method at every target, from every start."""
        rows: Rows = []
        for epochs, network in self._networks(model, seed).items():
            cells = {(0.0, "none"): partial(self._unpruned, network, seed)}
            cells |= {
                (target, method): partial(self._pruned, network, seed, target, method)
                for target, method in product(self.config.targets, self.config.algo)
            }
            for (target, method), measure in cells.items():
                row = self.once(f"seed{seed}-epochs{epochs}-{target}-{method}", measure)
                cell = {"seed": seed, "epochs": epochs, "target": target, "method": method}
                rows.append(cell | row)
        return rows

    def _networks(self, model: str, seed: int) -> dict[int, nn.Module]:
        """Return the networks of a seed by epochs of training."""
        marks, name = self.config.epochs, f"seed{seed}-networks"
        task = self.task(model, seed)

        def trained() -> dict[str, Any]:
            found = train_with_marks(task, copy.deepcopy(task.model), marks, seed)
            return {str(epochs): network.state_dict() for epochs, network in found.items()}

        kept = self.once(name, trained)
        networks = {epochs: copy.deepcopy(task.model) for epochs in marks}
        with self.folder.using(name):
            for epochs, network in networks.items():
                network.load_state_dict(kept[str(epochs)])
        return networks

    def _unpruned(self, network: nn.Module, seed: int) -> dict[str, Any]:
        task = CompressionTask(network, self.data, device=self.config.device)
        finetuned = copy.deepcopy(task.model)
        costs = {"filters": 1.0, "macs": 1.0, "params": 1.0}
        search = {"rates": "", "n_evaluations": 0, "search_seconds": 0.0}
        return costs | search | self._finetuned(task, finetuned, seed)

    def _pruned(self, network: nn.Module, seed: int, target: float, method: str) -> dict[str, Any]:
        """Search rates, apply the best and fine-tune."""
        config = self.config
        env = PruningEnv(
            network,
            self.data,
            device=config.device,
            method=config.selection,
            filters_budget=1.0 - target if config.unit == "filters" else None,
            flops_budget=1.0 - target if config.unit == "macs" else None,
            finetune_steps=config.finetune_steps,
            reward_at="episode",
            seed=seed,
        )
        log = EpisodeLog(DummyVecEnv([lambda: env]))
        start = perf_counter()
        policy, n_evaluations = self._policy(env, method, seed)
        if policy is None:
            self._search(log, env, method, seed)
            n_evaluations = log.episodes[-1].n_evaluations
        seconds = perf_counter() - start
        if policy is not None:
            run_policy(policy, log, n_episodes=1)
        best = best_episode(log.episodes)
        play_actions(env, best.actions)
        rates, plan = list(best.values), env.plan
        return {
            "filters": plan.count(rates, "filters") / plan.full("filters"),
            "macs": best.dense_macs / env.unpruned.macs,
            "params": best.dense_params / env.unpruned.params,
            "rates": " ".join(f"{rate:.4f}" for rate in rates),
            "n_evaluations": n_evaluations,
            "search_seconds": seconds,
        } | self._finetuned(env.task, env.compressed_model(), seed)

    def _policy(
        self, env: PruningEnv, method: str, seed: int
    ) -> tuple[PolicyPredictor | None, int]:
        """Return a policy that always does the same, and what it has evaluated; or None, 0."""
        if method == BASELINE:
            return uniform_policy(env), 0
        if method == "afie":
            return AFIE(env), 0
        if method == "sbpf":
            config = self.config
            agent = SBPF(
                env,
                damage=config.damage,
                n_trials=config.n_trials,
                n_rounds=config.n_rounds,
                seed=seed,
            )
            return agent, agent.n_evaluations
        return None, 0

    def _search(self, log: EpisodeLog, env: PruningEnv, method: str, seed: int) -> None:
        """Let random search or a learner evaluate as many networks as are allowed."""
        limit = self.config.evaluations or self._sbpf_evaluations(env)
        if method == "random":
            policy = Random(log.observation_space, log.action_space, seed)
            # A random sequence repeats another now and then.
            run_policy(policy, log, n_episodes=10 * limit, n_evaluations=limit)
            return
        agent = make_learner(method, log, n_steps=limit * log.walk_length, seed=seed)
        run_learner(agent, log, limit)

    def _sbpf_evaluations(self, env: PruningEnv) -> int:
        """Return how many networks SBPF evaluates."""
        n_layers = len({name for each in env.plan.producers for name in each})
        n_rounds = self.config.n_rounds
        return n_rounds * (1 + n_layers * self.config.n_trials) + n_rounds - 1

    def _finetuned(self, task: CompressionTask, network: nn.Module, seed: int) -> dict[str, Any]:
        """Fine-tune a network in place and return what it is worth before and after."""
        before = task.score(network)
        steps = self.config.final_finetune_steps
        task.finetune(network, steps, derive_generator(seed, 2), anneal=True)
        task.reestimate_batch_norm(network, derive_generator(seed, 3))
        return {
            "validation_before": before,
            "validation_accuracy": task.score(network),
            "test_error": 1.0 - task.accuracy(network, "test"),
        }

    def report(self, table: pd.DataFrame) -> str:
        """Format the report of all rows as Markdown."""
        config = self.config
        steps = config.final_finetune_steps
        return format_report(table, config.title, config.unit, config.selection, steps)

    def figures(self, table: pd.DataFrame) -> dict[str, Figure]:
        """Draw the errors."""
        return {"errors.png": draw_errors(table, self.config.title, self.config.unit)}


def run(config: Config, console: Console) -> pd.DataFrame:
    """Measure, see `run_study`; one row for each seed, start, target and method."""
    return run_study(Measurement, config, console)


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "")
