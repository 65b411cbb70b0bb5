"""The stages of the main job, each a search, its best episode and a final fine-tuning.

What is finished, and the search that is under way, is kept in the run folder, so that a job that
was stopped goes on where it was.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

from rich.console import Console
from stable_baselines3.common.logger import configure
from torch import nn

from agents import Portfolio, Random
from compress_env.envs.base import LayerwiseCompressionEnv, TaskOptions
from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from compress_env.networks.checkpoints import checkpoint_bytes
from compress_env.seeding import derive_generator, global_seed
from compress_env.store.digests import digest
from compress_env.task.finetuner import run_finetuner
from compress_env.task.layers import format_minimum
from compress_env.task.task import FinetuneConfig
from experiments.common.cli.heartbeat import showing
from experiments.common.cli.progress import SearchProgress
from experiments.common.cli.say import say
from experiments.common.run_folder import RunFolder
from experiments.compress import inputs
from experiments.compress.choosers import AroundRule, check_decisions, make_agent, make_policy
from experiments.compress.config import MIXED_BITS, Config, GivenBits, own_names
from experiments.compress.finetuning import finetune_in_parts
from experiments.compress.inputs import Given, check_values, load_images, load_network
from experiments.compress.plan import Timing, timed
from experiments.search.actors import open_actors
from experiments.search.entrants import SINGLE, env_options, rule_of
from experiments.search.episodes import Episode, EpisodeLog, best_episode
from experiments.search.observing import wrap
from experiments.search.playing import play_actions
from experiments.search.policies import Script, read_policy
from experiments.search.resuming import ResumableSearch, read_finished

__all__ = ["Contender", "Job", "Stage"]

WARMUP = 20
"""The step size rises for the first twentieth of a final fine-tuning: without that, distillation
ruined a network now and then."""


class Stage(NamedTuple):
    """What a search over one stage left behind."""

    episodes: list[Episode]
    best: Episode
    model: nn.Module


class Contender(NamedTuple):
    """One way to choose rates and bits, and what it has come to."""

    name: str
    stages: dict[str, Stage]
    """`pruning`, `quantization` or both, in this order."""

    @property
    def model(self) -> nn.Module:
        """The final network."""
        return [*self.stages.values()][-1].model


class Job:
    """The main job of one configuration in one run folder."""

    searches: dict[tuple[str, str], list[Episode]]
    """Episodes so far by contender and stage, in the order of the searches."""
    unpruned: dict[str, str]
    """Layers that are left out of pruning, with the reason."""
    unquantized: dict[str, str]
    """Weights that stay float32, with the reason."""
    n_quantized: int
    """Layers whose bits are decided."""
    pruning_env: PruningEnv | None
    """The environment of the first stage, if the network is pruned."""
    first_env: LayerwiseCompressionEnv
    """The environment of whichever stage comes first."""

    def __init__(
        self, config: Config, console: Console, folder: RunFolder, given: Given | None = None
    ) -> None:
        """Load the task and check all budgets before anything is trained.

        Raises:
            ValueError: If a name, a budget or another setting is wrong.
            FileNotFoundError: If images or weights are not there.
        """
        config.check()
        self.config = config
        self.console = console
        self.folder = folder
        self.searches, self._given = {}, given or Given()
        self._policy = read_policy(config.policy, config.searcher) if config.policy else {}
        # On the CPU: worker processes are sent what the environments are made from.
        self._data = load_images(config, self._given)
        needed = config, self._data, self._given, folder, console
        self._prepare(load_network(*needed, lambda model: copy.copy(self)._prepare(model)))
        self._hold_to_inputs()

    def _prepare(self, model: nn.Module) -> None:
        """Make the environments of a network, which check the budgets."""
        config, self._model = self.config, model
        self.pruning_env = self._pruning_env(config.searcher) if config.prunes else None
        self.unpruned = self.pruning_env.skipped_layers if self.pruning_env else {}
        self.unquantized, self.n_quantized, self.size_budget_bytes = {}, 0, math.inf
        first: LayerwiseCompressionEnv | None = self.pruning_env
        if config.size is not None:
            self.size_budget_bytes = config.size * checkpoint_bytes(model)
            quantization = self._check_size(config.size, model)
            self.unquantized = quantization.skipped_layers
            self.n_quantized = len(quantization.walk)
            first = first or quantization
        assert first is not None  # there is a budget
        n_pruned = len(self.pruning_env.walk) if self.pruning_env else 0
        check_decisions(config, {"pruning": n_pruned, "quantization": self.n_quantized})
        self.first_env = first
        self.task = self.first_env.task

    def _pruning_env(self, algorithm: str) -> PruningEnv:
        config = self.config
        with own_names():
            return PruningEnv(
                self._model,
                self._data,
                method=config.method,
                flops_budget=config.macs,
                params_budget=config.params,
                channel_round=config.channel_round,
                variational=config.variational,
                **self._options("pruning", algorithm),
            )

    def _check_size(self, size: float, model: nn.Module) -> QuantizationEnv:
        """Check that the size budget can be met after the strongest pruning, if there is any.

        Returns:
            The environment of the network before, or after, that pruning.

        Raises:
            ValueError: If it cannot.
        """
        if self.pruning_env is None:
            with own_names():
                return self._quantization_env("", model, self.config.searcher)
        smallest = QuantizationEnv(
            self.pruning_env.smallest_model(),
            self.pruning_env.task.data,
            device=self.pruning_env.task.device,
            activation_bits=self.config.activation_bits,
        )
        lowest = smallest.unpruned.cost_low / checkpoint_bytes(model)
        if not lowest <= size <= 1.0:
            raise ValueError(
                f"size must be in [{format_minimum(lowest)}, 1]: the most pruned network at 1 bit "
                f"takes up to {lowest:.4f} of the float32 size, got {size}"
            )
        return smallest

    def _hold_to_inputs(self) -> None:
        """Check that a stopped run goes on with the network, the images and the policy it had.

        Raises:
            ValueError: If it does not.
        """
        had = inputs.input_digests(self.task.model, self._data)
        if self._policy:
            had["policy"] = digest({stage: tuple(each) for stage, each in self._policy.items()})
        self.folder.hold_to(had, inputs.code_digests(self._given))

    def _options(self, stage: str, algorithm: str) -> TaskOptions:
        config, shared = self.config, self.folder.state_path / "transitions.sqlite"
        options: TaskOptions = {
            "device": config.device,
            "scorer": self._given.score,
            "finetuner": self._given.finetune if self._given.finetunes_episodes else None,
            "finetune_steps": config.finetune_steps,
            "finetune_at": config.finetune_at,
            "finetune_config": FinetuneConfig(
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                bf16=config.bf16,
                distill_temperature=config.distill_temperature,
            ),
            "reward": config.reward,
            "reward_at": config.reward_at,
            "seed": config.seed,
            "store": config.store or (shared if config.n_envs > 1 else "memory"),
        }
        prior = env_options(algorithm, stage).get("prior")
        return options if prior is None else {**options, "prior": prior}

    @cached_property
    def baseline_score(self) -> float:
        """Validation accuracy of the network as it is, or what the caller's measure says of it."""
        return self.task.score(self.task.model)

    @property
    def budgets(self) -> dict[str, float]:
        """The budgets that there are, fractions of the network as it is, by what is limited."""
        config, env = self.config, self.pruning_env
        kind = "" if env is None or env.macs == "dense" else " by non-zero weights"
        found = {
            f"multiply-accumulates{kind}": config.macs,
            "non-zero parameters" if kind else "parameters": config.params,
            "bytes": config.size,
        }
        return {what: budget for what, budget in found.items() if budget is not None}

    def fits(self, macs: Mapping[str, int], params: Mapping[str, int]) -> bool:
        """Tell whether a network is within the budgets of pruning.

        Args:
            macs: `dense` and `sparse` multiply-accumulates per image.
            params: `dense` and `sparse` parameters.
        """
        env = self.pruning_env
        if env is None:
            return True
        counted = {"macs": macs[env.macs], "params": params[env.macs]}
        return all(counted.get(unit, 0) <= limit for unit, limit in env.budgets.items())

    def compress(self, name: str, algorithm: str) -> Contender:
        """Run all stages with one algorithm.

        Args:
            name: What the row is called.
            algorithm: Name of the agent, or of the rules.
        """
        stages = {}
        if self.pruning_env is not None:
            env = self._first_env(algorithm)
            stages["pruning"] = self._stage((name, "pruning"), env, algorithm)
        if self.config.size is not None:
            env = (
                self._quantization_env(name, stages["pruning"].model, algorithm)
                if stages
                else self._first_env(algorithm)  # of the whole network
            )
            stages["quantization"] = self._stage((name, "quantization"), env, algorithm)
        return Contender(name, stages)

    def _first_env(self, algorithm: str) -> LayerwiseCompressionEnv:
        """Return the first stage's environment; the rule in an agent's name is that agent's own."""
        if rule_of(algorithm) == rule_of(self.config.searcher):
            return self.first_env
        if self.pruning_env is not None:
            return self._pruning_env(algorithm)
        return self._quantization_env("", self._model, algorithm)

    def give_bits(self, name: str, pruning: Stage, bits: GivenBits) -> Contender:
        """Give the layers of a pruned network bits without a search.

        Args:
            name: What the row is called.
            pruning: Where the network comes from.
            bits: Which ones.
        """
        env = self._quantization_env(name, pruning.model, bits.rule, is_free=bits.is_free)
        quantization = self._stage((name, "quantization"), env, bits.rule)
        return Contender(name, {"pruning": pruning, "quantization": quantization})

    def _quantization_env(
        self, name: str, model: nn.Module, algorithm: str, *, is_free: bool = False
    ) -> QuantizationEnv:
        """Make the environment of the last stage; its budget is the nearest that can be met."""
        budget = None if is_free else self._size_budget(name, model)
        return QuantizationEnv(
            copy.deepcopy(model).cpu(),  # which may be somebody's
            self._data,
            size_budget=budget,
            activation_bits=self.config.activation_bits,
            scales="best",
            **self._options("quantization", algorithm),
        )

    def _size_budget(self, name: str, model: nn.Module) -> float | None:
        """Return the size budget as a fraction of this network's bytes."""
        if self.pruning_env is None:
            return self.config.size
        free = QuantizationEnv(
            model,
            self.task.data,
            device=self.task.device,
            activation_bits=self.config.activation_bits,
        ).unpruned
        budget, lowest = self.size_budget_bytes / free.cost_high, free.cost_low / free.cost_high
        if budget < lowest:
            self.console.print(f"{name}: too little was pruned for the size budget, even at 1 bit")
        return min(1.0, max(budget, lowest))

    def _stage(self, key: tuple[str, str], env: LayerwiseCompressionEnv, algorithm: str) -> Stage:
        """Search, apply the best episode again, and fine-tune its network."""
        episodes = self._search(key, env, algorithm)
        best = best_episode(episodes)
        play_actions(env, best.actions)
        model = env.live_model()
        name = f"{'-'.join(key)}-weights"
        kept = self.folder.read_state(name)
        if kept is None:
            self._finetune(key, model)
            self.folder.write_state(name, model.state_dict())
        else:
            with self.folder.using(name):
                model.load_state_dict(kept)
        return Stage(episodes, best, model)

    def _finetune(self, key: tuple[str, str], model: nn.Module) -> None:
        seed, finetuner = self.config.seed, self._given.finetune
        text = f"{': '.join(key)}: fine-tuning the best network, {self.n_final_steps:,} minibatches"
        with showing(self.console, text):
            if finetuner is None:
                finetune_in_parts(
                    self.task,
                    model,
                    self.n_final_steps,
                    seed,
                    self.folder,
                    f"{'-'.join(key)}-finetuning",
                    anneal=self.config.schedule == "cosine",
                    warmup_steps=self.n_final_steps // WARMUP,
                    distill=self.config.distill,
                    halve=True,
                )
            else:
                own = derive_generator(seed, 2**31, 0).initial_seed()
                with global_seed(own, self.task.device):
                    image = self.task.example_image()
                    run_finetuner(model, finetuner, self.n_final_steps, image)
        self.task.reestimate_batch_norm(model, derive_generator(seed, 2**31, 1))

    @property
    def n_final_steps(self) -> int:
        """Minibatches of each final fine-tuning."""
        if self.config.final_finetune_steps is not None:
            return self.config.final_finetune_steps
        return max(500, 10 * len(self.task.data.train) // self.task.config.batch_size)

    def timed(self) -> Timing:
        """Time an episode of the first stage, and a few minibatches of final fine-tuning."""
        distill = self.config.distill if self._given.finetune is None else None
        return timed(self.first_env, distill)

    def _search(
        self, key: tuple[str, str], env: LayerwiseCompressionEnv, algorithm: str
    ) -> list[Episode]:
        """Run a search, or what a stopped run has left of it."""
        name, label = "-".join(key), ": ".join(key)
        finished = read_finished(self.folder, name)
        if finished is not None:
            self.searches[key] = finished
            return finished
        given = self._policy.get(key[1])
        is_single = algorithm in (*SINGLE, MIXED_BITS) or given is not None
        config, limit = self.config, self.config.n_evaluations
        observed = wrap(algorithm, env, shaping=config.shaping)
        progress = SearchProgress(
            label,
            1 if is_single else limit,
            self.folder,
            self.console,
            unit="episodes" if is_single else "evaluations",
            tensorboard=config.tensorboard,
        )
        with open_actors(observed, 1 if is_single else config.n_envs) as actors, progress.shown():
            log = EpisodeLog(actors, progress.advance, counts_prior="+" in algorithm)
            self.searches[key] = log.episodes
            search = ResumableSearch(name, log, self.folder)
            if given is not None:
                search.act(Script(given.actions), 1)
                check_values(log.episodes[0], given)
            elif is_single:
                policy = make_policy(algorithm, env, log, config.seed)
                if isinstance(policy, Portfolio):
                    tried = ", ".join(f"{n} {r:.4f}" for n, r in policy.rewards.items())
                    say(self.console, f"{label}: {policy.choice} is best by reward ({tried})")
                search.act(policy, 1)
            elif isinstance(agent := make_agent(algorithm, env, log, config), Random):
                if isinstance(agent, AroundRule):
                    say(self.console, f"{label}: one decision: random search around the best rule")
                search.act(agent, config.n_episodes, limit)
            else:
                if config.tensorboard:
                    tensorboard = self.folder.path / "tensorboard" / name
                    agent.set_logger(configure(str(tensorboard), ["tensorboard"]))
                search.learn(agent, config.n_episodes, limit)
        return log.episodes
