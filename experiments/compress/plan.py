"""What the main job is about to do, and about how long that takes, told before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import NamedTuple

from agents.rules import IN_PORTFOLIO
from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.seeding import derive_generator
from compress_env.task.task import CompressionTask
from experiments.common.cli.heartbeat import format_seconds
from experiments.compress.config import Config
from experiments.search.entrants import SINGLE
from experiments.search.playing import play_actions

__all__ = [
    "Timing",
    "describe_inputs",
    "describe_stage",
    "describe_work",
    "timed",
]

N_TIMED = 3
"""Minibatches of fine-tuning that are timed."""


class Timing(NamedTuple):
    """What was just timed, in seconds."""

    episode: float
    """An episode of the first stage."""
    minibatch: float | None
    """A minibatch of the final fine-tunings; None if a caller's loop does them."""


def timed(env: LayerwiseCompressionEnv, distill: float | None) -> Timing:
    """Time an episode in the middle of every interval, and a few minibatches.

    Args:
        env: The environment, whose episode ends.
        distill: Weight of the unpruned network's answers in the final fine-tunings; None if a
            caller's loop does them.
    """
    start = perf_counter()
    play_actions(env, [0.0] * len(env.walk))
    episode = perf_counter() - start
    if distill is None:
        return Timing(episode, None)
    model = env.task.copy_model()
    start = perf_counter()
    env.task.finetune(model, N_TIMED, derive_generator(env.task_seed, 0, 0), distill=distill)
    return Timing(episode, (perf_counter() - start) / N_TIMED)


def describe_inputs(
    title: str, task: CompressionTask, accuracy: float, n_params: int, n_macs: int
) -> str:
    """Say what is compressed, and warn if it has learned nothing.

    Args:
        title: What the task is called.
        task: The task.
        accuracy: Of its network on the validation images, or what a caller's measure says.
        n_params: Its parameters.
        n_macs: Its multiply-accumulates per image.
    """
    data = task.data
    text = (
        f"{title}: {n_params:,} parameters, {n_macs:,} multiply-accumulates an image; "
        f"{accuracy:.2%} of {len(data.validation):,} validation images right "
        f"({len(data.train):,} images to train on, {len(data.test):,} to test)"
    )
    if accuracy < 1.5 / data.num_classes:
        text += "\nthat is about chance: are its weights given (--weights, --train-epochs)?"
    return text


def describe_stage(
    verb: str, budgets: Mapping[str, float], n_decisions: int, skipped: Mapping[str, str]
) -> str:
    """Say what one stage decides, and which layers it leaves alone, with the reasons.

    Args:
        verb: `prune` or `quantize`.
        budgets: Fractions of the network as it is, by what they are of.
        n_decisions: Decisions in an episode.
        skipped: Reasons by layer.
    """
    limits = " and ".join(f"{b:.4g} of the {what}" for what, b in budgets.items())
    lines = [f"{verb} to {limits}: {n_decisions} decisions, {len(skipped)} layers left as they are"]
    by_reason: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        by_reason.setdefault(reason, []).append(name)
    lines += [f"  {_some(names)}: {reason}" for reason, names in by_reason.items()]
    return "\n".join(lines)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def describe_work(config: Config, timing: Timing, n_final_steps: int) -> str:
    """Say how many episodes and minibatches there will be, and the time that they take."""
    n_stages = config.prunes + (config.size is not None)
    n_episodes = n_stages * sum(_episodes(name, config) for name in config.contenders)
    n_finals = n_stages * len(config.contenders) - len(config.given_bits) * (n_stages - 1)
    seconds = n_episodes * timing.episode + n_finals * n_final_steps * (timing.minibatch or 0.0)
    whole = "in all" if timing.minibatch is not None else "and the time of your own loop"
    return (
        f"{', '.join(config.contenders)}: {n_episodes} episodes of {timing.episode:.2g} s (just "
        f"timed) and {n_finals} final fine-tunings of {n_final_steps:,} minibatches, about "
        f"{format_seconds(seconds)} {whole}"
    )


def _episodes(name: str, config: Config) -> int:
    """Return about how many episodes a contender takes in a stage."""
    by_rules = 1 + len(IN_PORTFOLIO)
    if name in SINGLE or name in config.given_bits:
        return 1 + by_rules * (name == "portfolio")
    return config.n_evaluations + by_rules * (name == "cma_es")
