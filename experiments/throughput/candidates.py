"""Timings of several pruned networks, fine-tuned and scored one by one and in one pass."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from time import perf_counter

import numpy as np

from compress_env.envs.priors import rescale_rates
from compress_env.envs.pruning import PruningEnv
from compress_env.pruning.graph.live import LiveChannels
from compress_env.pruning.sizes import sized_network
from compress_env.pruning.stacked import StackedNetworks
from compress_env.seeding import derive_generator
from experiments.throughput.timing import Rows, synchronize

__all__ = ["time_candidates"]


def time_candidates(env: PruningEnv, n_candidates: int, n_rounds: int, seed: int) -> Rows:
    """Time what follows the last decision of random episodes: training and scoring; a row per way.

    Both ways take turns on the same networks, and which of them goes first changes from round to
    round. Before it is timed, each runs once untimed: kernels are slower the first time they meet a
    shape.

    Args:
        env: Gives task, plan, budgets and `finetune_steps`.
        n_candidates: Networks in one pass.
        n_rounds: So many candidates are drawn anew so often.
        seed: Seed of the random rates.

    Returns:
        Candidates, seconds, candidates per second, and the mean accuracy, which tells whether both
        ways have done the same.
    """
    rng = np.random.default_rng(seed)
    ways = {"one by one": _one_by_one, "stacked": _stacked}
    seconds, accuracies = dict.fromkeys(ways, 0.0), {way: list[float]() for way in ways}
    for number in range(n_rounds):
        networks = [_draw(env, rng) for _ in range(n_candidates)]
        for way in ways if number % 2 else reversed(ways):
            for is_timed in (False, True):
                candidates = copy.deepcopy(networks)
                synchronize(env.task.device)
                start = perf_counter()
                found = ways[way](env, candidates)
                synchronize(env.task.device)
                if is_timed:
                    seconds[way] += perf_counter() - start
                    accuracies[way] += found
    return [
        {
            "at_once": n_candidates,
            "way": way,
            "candidates": n_rounds * n_candidates,
            "seconds": seconds[way],
            "candidates_per_s": n_rounds * n_candidates / seconds[way],
            "accuracy": float(np.mean(accuracies[way])),
        }
        for way in ways
    ]


def _draw(env: PruningEnv, rng: np.random.Generator) -> LiveChannels:
    """Return a network pruned at random rates, scaled so that they just meet the budgets."""
    plan = env.plan
    rates = rng.uniform(0.0, plan.max_pruning_rate, len(plan.decisions)).tolist()
    if env.budgets:
        rates = rescale_rates(
            rates, plan.max_pruning_rate, lambda scaled: plan.meets(scaled, env.budgets)
        )
    return sized_network(env.task.model, plan, tuple(plan.at_rates(rates)))


def _one_by_one(env: PruningEnv, networks: Sequence[LiveChannels]) -> list[float]:
    accuracies = []
    for model in (network.model for network in networks):
        env.task.finetune(model, env.finetune_steps, derive_generator(env.task_seed, 0))
        env.task.reestimate_batch_norm(model, derive_generator(env.task_seed, 1))
        accuracies.append(env.task.accuracy(model, "validation"))
    return accuracies


def _stacked(env: PruningEnv, networks: Sequence[LiveChannels]) -> list[float]:
    stack = StackedNetworks(env.task, networks)
    stack.finetune(env.finetune_steps, derive_generator(env.task_seed, 0))
    stack.reestimate_batch_norm(derive_generator(env.task_seed, 1))
    accuracies = stack.accuracies("validation")
    stack.write_back()
    return accuracies
