"""The two stages of the main job, each a search, its best episode and a final fine-tuning.

What is finished, and the search that is under way, is kept in the run folder, so that a job that
was stopped goes on where it was.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from rich.console import Console
from rich.progress import Progress
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import configure
from stable_baselines3.common.type_aliases import PolicyPredictor
from torch import nn

from agents import AFIE, SBPF, Greedy, Random
from compress_env.data.bundle import load_data
from compress_env.envs.base import LayerwiseCompressionEnv, TaskOptions
from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from compress_env.networks.checkpoints import checkpoint_bytes
from compress_env.networks.models import Recipe, load_baseline
from compress_env.seeding import derive_generator
from compress_env.store.digests import digest
from compress_env.task.layers import format_minimum
from compress_env.task.task import select_device
from experiments.common.inputs import data_digest, network_digest
from experiments.common.progress import SearchProgress
from experiments.common.run_folder import RunFolder
from experiments.compress.config import Config
from experiments.search.actors import open_actors
from experiments.search.algorithms import SINGLE, make_learner
from experiments.search.episodes import Episode, EpisodeLog, best_episode
from experiments.search.playing import play_actions
from experiments.search.policies import Script, StagePolicy, read_policy
from experiments.search.resuming import ResumableSearch, read_finished
from experiments.search.uniform import uniform_policy

__all__ = ["Contender", "Job", "Stage"]


class Stage(NamedTuple):
    """What a search over one stage left behind."""

    episodes: list[Episode]
    best: Episode
    model: nn.Module


class Contender(NamedTuple):
    """One way to choose rates and bits, and what it has come to."""

    name: str
    pruning: Stage
    quantization: Stage


class Job:
    """The main job of one configuration in one run folder."""

    searches: dict[tuple[str, str], list[Episode]]
    """Episodes so far by contender and stage, in the order of the searches."""
    unquantized: dict[str, str]
    """Weights that stay float32, with the reason."""

    def __init__(self, config: Config, console: Console, folder: RunFolder) -> None:
        """Load the task and check both budgets before anything is trained.

        Raises:
            ValueError: If a name, a budget or another setting is wrong.
            FileNotFoundError: If the data set or the checkpoint is not there.
        """
        config.check()
        self.config = config
        self.console = console
        self.folder = folder
        self.searches = {}
        self._policy = read_policy(config.policy, config.algo) if config.policy else {}
        # On the CPU: worker processes are sent what the environments are made from.
        self._data = load_data(config.dataset, data_root=config.data_root, download=config.download)
        self.pruning_env = PruningEnv(
            self._baseline(),
            self._data,
            method=config.method,
            flops_budget=config.flops_budget,
            **self._options(),
        )
        self.task = self.pruning_env.task
        self._hold_to_inputs()
        full_bytes = checkpoint_bytes(self.task.model)
        self.size_budget_bytes = config.size_budget * full_bytes
        smallest = QuantizationEnv(
            self.pruning_env.smallest_model(),
            self.task.data,
            device=self.task.device,
            activation_bits=config.activation_bits,
        )
        self.unquantized = smallest.skipped_layers
        lowest = smallest.unpruned.cost_low / full_bytes
        if not lowest <= config.size_budget <= 1.0:
            raise ValueError(
                f"size_budget must be in [{format_minimum(lowest)}, 1]: the most pruned network "
                f"at 1 bit takes up to {lowest:.4f} of the float32 size, got {config.size_budget}"
            )

    def _hold_to_inputs(self) -> None:
        """Check that a stopped run goes on with the network, the images and the policy it had.

        Raises:
            ValueError: If it does not.
        """
        inputs = {"network": network_digest(self.task.model), "data": data_digest(self._data)}
        if self._policy:
            inputs["policy"] = digest({stage: tuple(each) for stage, each in self._policy.items()})
        self.folder.hold_to(inputs)

    def _options(self) -> TaskOptions:
        shared = self.folder.state_path / "transitions.sqlite"
        return {
            "device": self.config.device,
            "finetune_steps": self.config.finetune_steps,
            "reward": self.config.reward,
            "reward_at": self.config.reward_at,
            "seed": self.config.seed,
            "store": self.config.store or (shared if self.config.n_envs > 1 else "memory"),
        }

    def _baseline(self) -> nn.Module:
        """Load the network, or train it, with a bar; it arrives on the CPU."""
        device = select_device(self.config.device)
        epochs = self.config.train_epochs
        with Progress(console=self.console, disable=not self.console.is_terminal) as progress:
            bar = progress.add_task("baseline", visible=False)

            def advance(done: int, total: int) -> None:
                progress.update(bar, completed=done, total=total, visible=True)

            return load_baseline(
                self.config.model,
                self._data.to(device),
                checkpoint=self.config.checkpoint,
                recipe=None if epochs is None else Recipe(epochs),
                device=device,
                progress=advance,
            ).cpu()

    def compress(
        self, name: str, algorithm: str, n_evaluations: tuple[int, int] | None
    ) -> Contender:
        """Run both stages with one algorithm.

        Args:
            name: What the row is called.
            algorithm: Name of the agent.
            n_evaluations: Network evaluations allowed in each stage; by episodes when None.
        """
        limits = n_evaluations or (None, None)
        pruning = self._stage((name, "pruning"), self.pruning_env, algorithm, limits[0])
        env = self._quantization_env(name, pruning.model)
        quantization = self._stage((name, "quantization"), env, algorithm, limits[1])
        return Contender(name, pruning, quantization)

    def quantize_uniformly(self, name: str, pruning: Stage, *, is_free: bool) -> Contender:
        """Give every layer of a pruned network the same bits.

        Args:
            name: What the row is called.
            pruning: Where the network comes from.
            is_free: Whether those are 8 bits, or the most that meet the size budget.
        """
        env = self._quantization_env(name, pruning.model, is_free=is_free)
        return Contender(name, pruning, self._stage((name, "quantization"), env, "uniform", None))

    def _quantization_env(
        self, name: str, model: nn.Module, *, is_free: bool = False
    ) -> QuantizationEnv:
        """Make the environment of stage 2; its budget is the nearest that the network can meet."""
        bits = self.config.activation_bits
        if is_free:
            return QuantizationEnv(
                model.cpu(), self._data, activation_bits=bits, scales="best", **self._options()
            )
        free = QuantizationEnv(
            model, self.task.data, device=self.task.device, activation_bits=bits
        ).unpruned
        budget, lowest = self.size_budget_bytes / free.cost_high, free.cost_low / free.cost_high
        if budget < lowest:
            self.console.print(f"{name}: too little was pruned for the size budget, even at 1 bit")
        size_budget = min(1.0, max(budget, lowest))
        return QuantizationEnv(
            model.cpu(),
            self._data,
            size_budget=size_budget,
            activation_bits=bits,
            scales="best",
            **self._options(),
        )

    def _stage(
        self,
        key: tuple[str, str],
        env: LayerwiseCompressionEnv,
        algorithm: str,
        n_evaluations: int | None,
    ) -> Stage:
        """Search, apply the best episode again, and fine-tune its network."""
        episodes = self._search(key, env, algorithm, n_evaluations)
        best = best_episode(episodes)
        play_actions(env, best.actions)
        model = env.live_model()
        name = f"{'-'.join(key)}-weights"
        kept = self.folder.read_state(name)
        if kept is None:
            self._finetune(": ".join(key), model)
            self.folder.write_state(name, model.state_dict())
        else:
            with self.folder.using(name):
                model.load_state_dict(kept)
        return Stage(episodes, best, model)

    def _finetune(self, label: str, model: nn.Module) -> None:
        seed = self.config.seed
        with self._status(f"{label}: fine-tuning the best network"):
            generator = derive_generator(seed, 2**31, 0)
            self.task.finetune(model, self._final_steps(), generator, anneal=True)
        self.task.reestimate_batch_norm(model, derive_generator(seed, 2**31, 1))

    def _status(self, text: str) -> AbstractContextManager[object]:
        """Show a spinner on a terminal, and nothing elsewhere."""
        return self.console.status(text) if self.console.is_terminal else nullcontext()

    def _final_steps(self) -> int:
        if self.config.final_finetune_steps is not None:
            return self.config.final_finetune_steps
        return max(1000, 10 * len(self.task.data.train) // self.task.config.batch_size)

    def _search(
        self,
        key: tuple[str, str],
        env: LayerwiseCompressionEnv,
        algorithm: str,
        n_evaluations: int | None,
    ) -> list[Episode]:
        """Run a search, or what a stopped run has left of it."""
        name = "-".join(key)
        finished = read_finished(self.folder, name)
        if finished is not None:
            self.searches[key] = finished
            return finished
        given = self._policy.get(key[1])
        is_single = algorithm in SINGLE or given is not None
        total = 1 if is_single else n_evaluations or self.config.episodes
        progress = SearchProgress(
            ": ".join(key),
            total,
            self.folder,
            self.console,
            unit="evaluations" if n_evaluations and not is_single else "episodes",
            tensorboard=self.config.tensorboard,
        )
        with (
            open_actors(env, 1 if is_single else self.config.n_envs) as actors,
            progress.shown(),
        ):
            log = EpisodeLog(actors, progress.advance)
            self.searches[key] = log.episodes
            search = ResumableSearch(name, log, self.folder)
            if given is not None:
                search.act(Script(given), 1)
                _check_values(log.episodes[0], given)
            elif algorithm in SINGLE:
                search.act(self._single(algorithm, env, log), 1)
            elif algorithm == "random":
                policy = Random(log.observation_space, log.action_space, self.config.seed)
                # A random sequence repeats another now and then: allow for many that do.
                limit = 10 * n_evaluations if n_evaluations else self.config.episodes
                search.act(policy, limit, n_evaluations)
            else:
                search.learn(self._agent(algorithm, log, name), self.config.episodes)
        return log.episodes

    def _single(
        self, algorithm: str, env: LayerwiseCompressionEnv, log: EpisodeLog
    ) -> PolicyPredictor:
        """Return an agent of `SINGLE`; those that know nothing of bits leave them to `Uniform`."""
        agent: AFIE | SBPF | Greedy
        if algorithm == "greedy":
            agent = Greedy(env)
        elif algorithm == "uniform" or not isinstance(env, PruningEnv):
            return uniform_policy(env, log.spend)
        else:
            agent = AFIE(env) if algorithm == "afie" else SBPF(env, seed=self.config.seed)
        log.spend(agent.n_evaluations, agent.seconds)
        return agent

    def _agent(self, algorithm: str, log: EpisodeLog, name: str) -> BaseAlgorithm:
        n_steps = self.config.episodes * log.walk_length
        agent = make_learner(algorithm, log, n_steps=n_steps, seed=self.config.seed)
        if self.config.tensorboard:
            folder = self.folder.path / "tensorboard" / name
            agent.set_logger(configure(str(folder), ["tensorboard"]))
        return agent


def _check_values(episode: Episode, policy: StagePolicy) -> None:
    """Check that a policy has done here what it did in the run that it is from.

    Raises:
        ValueError: If it has not.
    """
    if episode.layers != policy.layers:
        raise ValueError(f"the policy decides {policy.layers}, this network {episode.layers}")
    for layer, now, then in zip(episode.layers, episode.values, policy.values, strict=True):
        if not math.isclose(now, then, abs_tol=1e-9):
            raise ValueError(
                f"the policy was found under other settings: of {layer} it made {then}, here "
                f"{now}; give the settings of its run"
            )
