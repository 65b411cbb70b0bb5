"""One agent searches one registered task from one seed, for a number of network evaluations.

`python -m experiments.trial --algo ppo --task PruneLeNet5Digits-v1` leaves a run
folder: every episode in `episodes.csv`, what a critic promised and what was earned in
`overestimation.csv`, and in `table.csv` the network of the best episode by reward with the actions
that lead to it, its test accuracy, and what the final policy does without exploration.

Where the task draws the order of the minibatches anew for each episode, the search has four fifths
of 30, 100 and 300 evaluations, the last fifth nominates what it stands by (`nomination.csv`,
`experiments.trial.nomination`), and the nominees are confirmed under five further orders, on test
images too (`confirmation.csv`; `confirmed_30` and so on in `table.csv`). With `--budgets` one
policy searches several budgets at once, and each has a row of `table.csv`. An agent is
a name, one of sb3-contrib, or `my_module:MyAgent`, looked for in the current directory too: a class
built as `MyAgent("MlpPolicy", env, seed=SEED)`, where env is a Stable-Baselines3 `VecEnv` of one
environment, or an object. With a method `learn` it learns; with `predict` alone it acts. Where
other work shares the cores, set `OMP_NUM_THREADS=1`: threads that wait for each other take many
times as long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from rich.console import Console
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor

from agents.overestimation import OverestimationCallback
from experiments.common.checks import read_object
from experiments.common.cli.command import run_command, run_measurement
from experiments.common.cli.given import is_given
from experiments.common.cli.progress import SearchProgress
from experiments.common.inputs import data_digest, file_digest, network_digest
from experiments.common.run_folder import RunFolder
from experiments.search.actors import synchronous_actors
from experiments.search.algorithms import Learner, check_takes, make_agent
from experiments.search.entrants import SINGLE, goes_on, n_envs_of
from experiments.search.episodes import EpisodeLog, best_episode, is_over, run_policy
from experiments.search.foreign import blaming, source_of
from experiments.search.observing import discount_as, wrap
from experiments.search.playing import Episode, play
from experiments.search.resuming import ResumableSearch, read_finished
from experiments.trial.config import Config, make_task
from experiments.trial.confirmation import (
    Conclusion,
    Search,
    conclude,
    conclude_part,
    conclude_single,
    most_runs,
    most_runs_of_part,
)
from experiments.trial.nomination import budgets_of, fresh_orders, searched
from experiments.trial.parts import Part, parts_of
from experiments.trial.reruns import Reruns
from experiments.trial.snapshots import PolicySnapshots, Snapshot, episode_values
from experiments.trial.table import checked_outcome, row_of

__all__ = ["Config", "main", "make_task", "run"]

STATE = "search"
WITH_CRITIC = (OnPolicyAlgorithm, TD3, SAC)
REPEATS = 3
"""Episodes allowed for each one that the evaluations suffice for: agents repeat networks."""


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
        self.env = make_task(config)
        self.observed = wrap(config.algo, self.env, shaping=config.shaping, budgets=config.budgets)
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
        n_parts = len(config.budgets)
        if min(limits) < n_parts:
            raise ValueError(
                f"expected an episode for each of {n_parts} budgets, got {min(limits):g} in all"
            )
        check_takes(
            config.algo,
            self.observed,
            n_envs=n_envs_of(config.algo, config.n_envs),
            n_steps=self._n_steps,
            settings=read_object(config, "settings"),
        )
        early = budgets_of(most)[:-1] if is_nominated and most and not n_parts else ()
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
        draws = self.is_stochastic or self.config.budgets
        seed = self.config.seed if draws else None
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
        if self.config.shaping:
            discount_as(agent, log)
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
        played = [self._play(agent, budget) for budget in self.config.budgets or (None,)]
        return played[0] | {
            "by_budget": played if self.config.budgets else [],
            "learns": isinstance(agent, Learner),
            "records": [] if watch is None else watch.state()["records"],
            "episode_values": episode_values(agent) if self.by_critic else [],
        }

    def _play(self, agent: PolicyPredictor, budget: float | None) -> dict[str, Any]:
        order = fresh_orders(self.config.seed, 1)[0] if self.is_stochastic else None
        episode = play(self.observed, agent, order, budget)
        return {
            "reward": episode.reward,
            "accuracy": math.nan if episode.accuracy is None else episode.accuracy,
            "actions": episode.actions,
            "values": episode.values,
            "noise_seed": episode.noise_seed,
        }

    def conclude(self, part: Part, n_spent: int, console: Console) -> Conclusion:
        """Nominate and confirm, or go on with that, on a task that draws orders.

        Args:
            part: All of the search, or what is of one of its budgets; the environment has that.
            n_spent: Evaluations of all of the search.
            console: Where progress goes.
        """
        config, episodes = self.config, part.episodes
        label = f"{config.algo}: {config.task}, seed {config.seed}, confirmation"
        reruns = Reruns(self.env, self.folder, label, console)
        layers = [layer.name for layer in self.env.walk]
        most = config.evaluations or n_spent
        last = Snapshot(part.outcome["policy"], part.outcome["episode_values"])
        if part.budget is not None:
            n_left = max(0, min(most // 5, most - n_spent)) // len(config.budgets)
            search = Search(episodes, {most: last}, most, config.seed, self.per_episode)
            n_runs = n_left // self.per_episode
            with reruns.shown(most_runs_of_part(n_runs)):
                return conclude_part(search, n_runs, reruns, layers)
        with reruns.shown(most_runs(most, is_single=self.is_single)):
            if self.is_single:
                return conclude_single(episodes, most, reruns, layers)
            snapshots = {budget: self.snapshots.read(budget) for budget in budgets_of(most)[:-1]}
            # A search that ended sooner is asked at its end.
            snapshots |= {b: last for b in budgets_of(most) if searched(b) > n_spent}
            search = Search(episodes, snapshots | {most: last}, most, config.seed, self.per_episode)
            return conclude(search, reruns, layers)


class _SearchOver(BaseException):
    """Ends the learning of an agent that takes no callbacks; no error, so that none catches it."""


def run(config: Config, console: Console) -> dict[str, Any]:
    """Run a trial, or go on with one.

    Returns:
        The row of `table.csv`; of several budgets, that of the first.

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
    found = [
        _measure_part(trial, part, episodes, console)
        for part in parts_of(episodes, outcome, trial.config.budgets)
    ]
    for name in ("confirmation", "nomination"):
        rows = [row for _, concluded in found if concluded for row in getattr(concluded, name)]
        if rows:
            trial.folder.write_rows(f"{name}.csv", rows)
    table = [row for row, _ in found]
    trial.folder.finish(table)
    return table[0]


def _measure_part(
    trial: Trial, part: Part, episodes: Sequence[Episode], console: Console
) -> tuple[dict[str, Any], Conclusion | None]:
    """Return a row of the table, and what it is confirmed by on a task that draws orders."""
    if part.budget is not None:
        trial.env.take_budget(part.budget)
    row = part.label | row_of(trial.env, part.episodes, part.outcome)
    if not trial.is_stochastic:
        return row, None
    concluded = trial.conclude(part, episodes[-1].n_evaluations, console)
    row |= concluded.columns | {
        "n_evaluations": row["n_evaluations"] + concluded.columns["n_fresh"],
        "seconds": row["seconds"] + concluded.seconds,
        "noise_seed": best_episode(part.episodes).noise_seed,
        "final_noise_seed": part.outcome["noise_seed"],
    }
    return row, concluded._replace(
        confirmation=[part.label | each for each in concluded.confirmation],
        nomination=[part.label | each for each in concluded.nomination],
    )


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "")
