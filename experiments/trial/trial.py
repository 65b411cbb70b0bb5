"""One agent searches one registered task from one seed, for a number of network evaluations.

`python -m experiments.trial --algo ppo --task PruneLeNet5Digits-v1` leaves a run
folder: every episode in `episodes.csv`, what a critic promised and what was earned in
`overestimation.csv`, and in `table.csv` the network of the best episode by reward with the actions
that lead to it, its test accuracy, and what the final policy does without exploration.

Where the task draws the order of the minibatches anew for each episode, the search has four fifths
of 30, 100 and 300 evaluations, the last fifth nominates what it stands by (`nomination.csv`,
`experiments.trial.nomination`), and the nominees are confirmed under five further orders, on test
images too (`confirmation.csv`; `confirmed_30` and so on in `table.csv`). An agent is
a name, one of sb3-contrib, or `my_module:MyAgent`, looked for in the current directory too: a class
built as `MyAgent("MlpPolicy", env, seed=SEED)`, where env is a Stable-Baselines3 `VecEnv` of one
environment, or an object. With a method `learn` it learns; with `predict` alone it acts. Where
other work shares the cores, set `OMP_NUM_THREADS=1`: threads that wait for each other take many
times as long.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium as gym
import tyro
from rich.console import Console
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor

from agents.overestimation import OverestimationCallback
from compress_env.envs.base import LayerwiseCompressionEnv
from experiments.common.checks import check_lowest, read_object
from experiments.common.cli.command import run_command, run_measurement
from experiments.common.cli.given import is_given
from experiments.common.cli.progress import SearchProgress
from experiments.common.inputs import data_digest, file_digest, network_digest
from experiments.common.run_folder import RunFolder
from experiments.search.actors import synchronous_actors
from experiments.search.algorithms import Learner, make_agent
from experiments.search.entrants import (
    ACCEPTED,
    LEARNERS,
    SINGLE,
    check_agent,
    check_stage,
    env_options,
    goes_on,
    n_envs_of,
    values_episodes,
    wrap,
)
from experiments.search.episodes import EpisodeLog, best_episode, is_over, run_policy
from experiments.search.foreign import blaming, source_of
from experiments.search.hyperparameters import check_settings, stored_settings
from experiments.search.names import full_name, task_id
from experiments.search.playing import Episode, play
from experiments.search.resuming import ResumableSearch, read_finished
from experiments.trial.confirmation import (
    Conclusion,
    Search,
    conclude,
    conclude_single,
    most_runs,
)
from experiments.trial.nomination import budgets_of, fresh_orders, searched
from experiments.trial.reruns import Reruns
from experiments.trial.snapshots import PolicySnapshots, Snapshot, episode_values
from experiments.trial.table import checked_outcome, row_of

__all__ = ["Config", "main", "make_task", "run"]

STATE = "search"
WITH_CRITIC = (OnPolicyAlgorithm, TD3, SAC)
NominateBy = Literal["accuracy", "critic"]
REPEATS = 3
"""Episodes allowed for each one that the evaluations suffice for: agents repeat networks."""


@dataclass(frozen=True)
class Config:
    """Settings of a trial."""

    algo: Annotated[str, tyro.conf.arg(help=f"Agent: {ACCEPTED}.")] = "random"
    task: str = "compress_env/PruneLeNet5Digits-v1"
    """Task of compress_env, with or without its namespace."""
    seed: int = 0
    """Seed of the agent; the task keeps its own."""
    evaluations: int | None = 300
    """Distinct networks whose accuracy may be asked for; None for no such limit."""
    episodes: int | None = None
    """Most episodes; three times as many as the evaluations would suffice for when not given."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment in place of the task's own, a JSON object."""
    settings: str = "{}"
    """Hyper-parameters of the agent in place of those in hyperparameters.json, a JSON object; the
    run folder holds all of them."""
    n_envs: int | None = None
    """Environments that the agent steps at once, synchronously: one after the other, in this
    process. When not given, 4 for the paper's agent and 1 for others. Evaluations and episodes
    are counted over all."""
    nominate_by: NominateBy = "accuracy"
    """Which episodes are nominated where orders are drawn: the most accurate ones, or those that
    the agent's critic values most (q_critic_ppo)."""
    data_root: Path | None = None
    """Folder of the data set's files."""
    store: Path | None = None
    """File that keeps what steps lead to, for all runs that name it; in memory when not given."""
    out: Path | None = None
    """Run folder; a new one under runs/ when not given."""
    resume: Path | None = None
    """Run folder of a stopped trial to go on with."""

    def __post_init__(self) -> None:
        """Put the namespace before the task where it is missing."""
        object.__setattr__(self, "task", full_name(self.task))

    def check(self) -> None:
        """Check everything but the keyword arguments of the task.

        Raises:
            ValueError: If a setting is wrong.
            ImportError: If the agent's module, or a package that it needs, cannot be imported.
        """
        check_agent(self.algo)
        check_stage(self.algo, task_id(self.task, others=True))
        check_lowest(self, 0, "seed")
        for name in ("evaluations", "episodes", "n_envs"):
            if getattr(self, name) is not None:
                check_lowest(self, 1, name)
        n_envs_of(self.algo, self.n_envs)
        if self.evaluations is None and self.episodes is None:
            raise ValueError("expected evaluations or episodes, got neither")
        if self.nominate_by == "critic" and not values_episodes(self.algo):
            raise ValueError(
                "nominate_by critic is for agents whose critic values whole episodes "
                f"({', '.join(filter(values_episodes, LEARNERS))}), got {self.algo}"
            )
        read_object(self, "env_kwargs")
        check_settings(self.algo, read_object(self, "settings"))

    def complete(self) -> Config:
        """Return the same trial with every hyper-parameter in `settings`.

        What is stored in the package may change, a trial that is under way may not.

        Raises:
            ValueError: If `settings` are no JSON object.
        """
        given = stored_settings(self.algo) | read_object(self, "settings")
        return dataclasses.replace(self, settings=json.dumps(given))


def make_task(config: Config, **options: Any) -> LayerwiseCompressionEnv:
    """Make the environment of a trial.

    Args:
        config: Names the task.
        options: Further keyword arguments of the environment.

    Raises:
        ValueError: If there is no such task, or it does not take the arguments.
        FileNotFoundError: If data are not there.
    """
    given = read_object(config, "env_kwargs") | env_options(config.algo) | options
    if config.data_root is not None:
        given["data_root"] = config.data_root
    try:
        task = task_id(config.task, others=True)
        # A registered one is meant as it is named: of its version, too.
        env = gym.make(gym.registry.get(task, task), disable_env_checker=True, **given).unwrapped
    except (gym.error.Error, TypeError) as error:
        reason = error.__context__ or error  # Gymnasium adds all arguments to a TypeError
        raise ValueError(f"cannot make the task {config.task!r}: {reason}") from None
    if not isinstance(env, LayerwiseCompressionEnv):
        raise ValueError(f"task must be one of compress_env's, got {config.task!r}")
    return env


class Trial:
    """A task, and the search of it by one agent."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        """Make the environment.

        Raises:
            ValueError: If a setting is wrong.
            FileNotFoundError: If data are not there.
        """
        config.check()
        self.config = config
        self.folder = folder
        self.env = make_task(config, **({} if config.store is None else {"store": config.store}))
        self.observed = wrap(config.algo, self.env)
        self._hold_to_inputs()
        self.is_stochastic = self.env.transition_noise
        self.is_single = config.algo in SINGLE
        if self.is_stochastic and config.evaluations is None and not self.is_single:
            raise ValueError(
                f"{config.task} draws an order for each episode: expected evaluations, whose last "
                "fifth nominates what is confirmed, got None"
            )
        is_nominated = self.is_stochastic and not self.is_single
        most = config.evaluations
        self._evaluations = searched(most) if is_nominated and most else most
        n_layers = len(self.env.walk)
        self.per_episode = n_layers if self.env.reward_at == "layer" else 1
        limits = [config.episodes or math.inf, math.inf]
        if self._evaluations is not None:
            limits[1] = math.ceil(self._evaluations / self.per_episode)
        self._n_steps = int(min(limits)) * n_layers
        self._n_episodes = config.episodes or REPEATS * int(limits[1])
        early = budgets_of(most)[:-1] if is_nominated and most else ()
        self.by_critic = is_nominated and config.nominate_by == "critic"
        self.snapshots = PolicySnapshots(
            self.observed, folder, early, config.seed, with_values=self.by_critic
        )

    def _hold_to_inputs(self) -> None:
        """Check that a stopped trial goes on with the network, the images and the code it had."""
        task = self.env.task
        inputs = {"network": network_digest(task.model), "data": data_digest(task.data)}
        source = source_of(self.config.algo)
        if source is not None:
            inputs["agent"] = file_digest(source)
        self.folder.hold_to(inputs)

    def search(self, console: Console) -> tuple[list[Episode], dict[str, Any]]:
        """Search, or go on with what a stopped trial has left.

        Returns:
            All episodes, and what else is known of the agent: see `_outcome`.
        """
        if read_finished(self.folder, STATE) is None:
            config = self.config
            label = f"{config.algo}: {config.task}, seed {config.seed}"
            n_episodes = self._n_steps // len(self.env.walk)
            progress = SearchProgress(
                label,
                1 if self.is_single else self._evaluations or n_episodes,
                self.folder,
                console,
                unit="evaluations" if self._evaluations and not self.is_single else "episodes",
            )
            with progress.shown():
                self._run(progress)
        episodes, state = read_finished(self.folder, STATE), self.folder.read_state(STATE)
        assert episodes is not None and state is not None
        with self.folder.using(STATE):
            return episodes, checked_outcome(state["outcome"])

    def _run(self, progress: SearchProgress) -> None:
        name, limits = self.config.algo, (self._n_episodes, self._evaluations)
        made: list[Any] = []

        def advance(episode: Episode, log: EpisodeLog) -> None:
            progress.advance(episode, log)
            for agent in made:
                # Others may have ended with it.
                self.snapshots.note(agent, log.episodes[: episode.index + 1])
            if not goes_on(name) and is_over(log.episodes, *limits):
                raise _SearchOver

        n_envs = n_envs_of(name, self.config.n_envs)
        # Whoever does not seed an environment that draws orders draws the same ones again too.
        seed = self.config.seed if self.is_stochastic else None
        actors = synchronous_actors(self.observed, n_envs, seed)
        log = EpisodeLog(actors, advance, counts_prior=True)
        search = ResumableSearch(STATE, log, self.folder)
        agent = make_agent(
            name,
            self.env,
            log,
            n_steps=self._n_steps,
            seed=self.config.seed,
            settings=read_object(self.config, "settings"),
        )
        made += [agent] if isinstance(agent, Learner) else []
        has_critic = goes_on(name) and isinstance(agent, WITH_CRITIC)
        watch = OverestimationCallback() if has_critic else None
        outcome = partial(self._outcome, agent, watch)
        if not goes_on(name):
            with blaming(name):
                self._run_unknown(agent, log)
                played = outcome()
            search.finish(lambda: played)
        elif isinstance(agent, BaseAlgorithm):
            search.learn(agent, *limits, watch=watch, outcome=outcome)
        else:
            limit = 1 if self.is_single else self._n_episodes
            search.act(agent, limit, self._evaluations, outcome=outcome)

    def _run_unknown(self, agent: Any, log: EpisodeLog) -> None:
        """Run an agent that nothing is known of but its methods."""
        with suppress(_SearchOver):
            if isinstance(agent, Learner):
                agent.learn(total_timesteps=self._n_episodes * log.walk_length)
            else:
                run_policy(agent, log, n_episodes=self._n_episodes)

    def _outcome(
        self, agent: PolicyPredictor, watch: OverestimationCallback | None
    ) -> dict[str, Any]:
        """Return what the agent does without exploration, in plain Python values."""
        order = fresh_orders(self.config.seed, 1)[0] if self.is_stochastic else None
        episode = play(self.observed, agent, order)
        return {
            "reward": episode.reward,
            "accuracy": math.nan if episode.accuracy is None else episode.accuracy,
            "actions": episode.actions,
            "values": episode.values,
            "learns": isinstance(agent, Learner),
            "noise_seed": episode.noise_seed,
            "records": [] if watch is None else watch.state()["records"],
            "episode_values": episode_values(agent) if self.by_critic else [],
        }

    def conclude(self, episodes: Sequence[Episode], last: Snapshot, console: Console) -> Conclusion:
        """Nominate and confirm, or go on with that, on a task that draws orders.

        Args:
            episodes: All of the search.
            last: What the agent has learnt by its end.
            console: Where progress goes.
        """
        config = self.config
        label = f"{config.algo}: {config.task}, seed {config.seed}, confirmation"
        reruns = Reruns(self.env, self.folder, label, console)
        layers = [layer.name for layer in self.env.walk]
        most = config.evaluations or episodes[-1].n_evaluations
        with reruns.shown(most_runs(most, is_single=self.is_single)):
            if self.is_single:
                return conclude_single(episodes, most, reruns, layers)
            snapshots = {budget: self.snapshots.read(budget) for budget in budgets_of(most)[:-1]}
            # A search that ended sooner is asked at its end.
            reached = episodes[-1].n_evaluations
            snapshots |= {b: last for b in budgets_of(most) if searched(b) > reached}
            search = Search(episodes, snapshots | {most: last}, most, config.seed, self.per_episode)
            return conclude(search, reruns, layers)


class _SearchOver(BaseException):
    """Ends the learning of an agent that takes no callbacks; no error, so that none catches it."""


def run(config: Config, console: Console) -> dict[str, Any]:
    """Run a trial, or go on with one.

    Returns:
        The row of `table.csv`.

    Raises:
        ValueError: If a setting is wrong.
        FileNotFoundError: If data are not there.
        RuntimeError: If no episode has come to its end.
    """
    given = is_given(config, "settings")
    config = config.complete() if config.resume is None or given else config
    return run_measurement("trial", config, console, Trial, _measure)


def _measure(trial: Trial, console: Console) -> dict[str, Any]:
    episodes, outcome = trial.search(console)
    trial.folder.write_rows("episodes.csv", [episode.row() for episode in episodes])
    records = outcome["records"]
    if records:
        rows = [record._asdict() for record in records]
        trial.folder.write_rows("overestimation.csv", rows)
    row = row_of(trial.env, episodes, outcome)
    if trial.is_stochastic:
        last = Snapshot(outcome["policy"], outcome["episode_values"])
        concluded = trial.conclude(episodes, last, console)
        trial.folder.write_rows("confirmation.csv", concluded.confirmation)
        if concluded.nomination:
            trial.folder.write_rows("nomination.csv", concluded.nomination)
        row |= concluded.columns | {
            "n_evaluations": row["n_evaluations"] + concluded.columns["n_fresh"],
            "seconds": row["seconds"] + concluded.seconds,
            "noise_seed": best_episode(episodes).noise_seed,
            "final_noise_seed": outcome["noise_seed"],
        }
    trial.folder.finish([row])
    return row


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "")
