"""Train the best known allocations again, and those that trials stand by.

`python -m experiments.benchmark replay PruneVGG8Digits-v1` takes the values of each layer from
`best_known.csv`, trains the network under the orders of a confirmation, and says its accuracy on
test images beside the one that is stored. Each exits with 1 where they differ.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.names import check_name
from compress_env.task.rewards import get_reward
from experiments.benchmark.table import BEST_KNOWN, Reference, read_best_known
from experiments.common.cli.parsing import parse_command
from experiments.common.cli.say import say
from experiments.common.stored import parse, read_table
from experiments.search.names import full_name, short_name
from experiments.search.playing import play_values, read_values
from experiments.trial.confirmation import ORDERS, budgets_in, confirmed_columns, final_columns
from experiments.trial.reruns import Rerun, rerun_actions
from experiments.trial.trial import Config as Trial
from experiments.trial.trial import make_task

__all__ = ["Config", "Confirmed", "agree", "main", "order_in", "replay", "replay_confirmation"]

Row = dict[Hashable, Any]
Confirmed = dict[tuple[str, int], Rerun]
"""What actions have come to under an order, so that no network is trained twice."""


@dataclass(frozen=True)
class Config:
    """Settings of a replay."""

    task: tyro.conf.Positional[tuple[str, ...]]
    """Tasks, with or without their namespace."""
    best_known: Path = BEST_KNOWN
    """Table of the best known accuracies."""
    tolerance: float = 0.0
    """Largest difference allowed: on another machine sums are rounded in another order."""
    data_root: Path | None = None
    """Folder of the data sets' files."""


def replay(config: Config, console: Console) -> list[str]:
    """Train the best known allocations again.

    Args:
        config: The settings.
        console: Where accuracies go.

    Returns:
        A line for each that comes to something else than is stored.

    Raises:
        ValueError: If there is no task, or the allocation of one is not known or not feasible.
        FileNotFoundError: If data are not there.
    """
    if not config.task:
        raise ValueError("expected at least one task, got none")
    known = read_best_known(config.best_known)
    names = [short_name(task) for task, reference in known.items() if reference.values]
    found = []
    for name in config.task:
        task = full_name(check_name("task with an allocation", short_name(name), names))
        env = make_task(Trial(task=task, data_root=config.data_root))
        accuracy, stored = test_accuracy(env, known[task]), known[task].best
        text = f"{short_name(task)}: test accuracy {accuracy:.4f}, stored {stored:.4f}"
        say(console, text)
        if not agree(stored, accuracy, max(config.tolerance, 1e-12)):
            found.append(text)
    return found


def test_accuracy(env: LayerwiseCompressionEnv, reference: Reference) -> float:
    """Return the confirmed test accuracy of a stored allocation.

    Args:
        env: Its task, with any prior.
        reference: From `read_best_known`.

    Raises:
        ValueError: If the values are not of the task's layers, or not feasible.
    """
    found = []
    for order in ORDERS:
        episode = play_values(env, read_values(reference.values), order)
        has_failed = episode.accuracy is None
        found.append(0.0 if has_failed else env.task.accuracy(env.compressed_model(), "test"))
    return float(np.mean(found))


def replay_confirmation(
    env: LayerwiseCompressionEnv,
    row: Mapping[Hashable, Any],
    folder: Path,
    tolerance: float,
    done: Confirmed,
) -> Iterator[str]:
    """Train what a trial stands by again, under all orders; yield what differs.

    Args:
        env: The task.
        row: Of the trial in `sweep.csv`.
        folder: The trial's own, whose `confirmation.csv` is compared where it is there.
        tolerance: Largest difference allowed.
        done: What has been trained before; it is added to.
    """
    yield from _replay_policy(env, row, tolerance, done)
    for budget in budgets_in(row):
        text = row.get(f"confirmed_actions_{budget}")
        if not isinstance(text, str) or not text:
            if not agree(row[f"confirmed_{budget}"], None):
                yield f"confirmed_{budget} is {row[f'confirmed_{budget}']!r}, of no actions"
            continue
        try:
            found = {order: _confirm(env, text, order, done) for order in ORDERS}
        except ValueError as error:
            yield f"confirmed_actions_{budget} cannot be taken: {error}"
            continue
        now = confirmed_columns(budget, found.values())
        stored = {name: row[name] for name in now}
        for order, (validation, test) in _stored_orders(folder, budget).items():
            names = (f"{kind} at {budget}, order {order}," for kind in ("validation", "test"))
            first, second = names
            stored |= {first: validation, second: test}
            rerun = found.get(order, Rerun(math.nan, math.nan, 0.0, ()))
            now |= {first: rerun.validation, second: rerun.test}
        yield from _differences(stored, now, tolerance)
        yield from _replay_values(env, row, budget, found[ORDERS[0]].values)
    yield from _check_best(env, row)


def _replay_values(
    env: LayerwiseCompressionEnv, row: Mapping[Hashable, Any], budget: int, values: Sequence[float]
) -> Iterator[str]:
    """Compare what the actions of a nominee lead to, layer by layer, with what is stored."""
    name = f"confirmed_values_{budget}"
    now = dict(zip((layer.name for layer in env.walk), values, strict=True))
    try:
        stored = read_values(str(row[name]))
    except ValueError as error:
        yield f"{name} cannot be read: {error}"
        return
    if stored.keys() != now.keys() or any(not agree(stored[x], now[x], 1e-12) for x in now):
        yield f"{name} is {row[name]!r}, its replay gives {json.dumps(now)!r}"


def _check_best(env: LayerwiseCompressionEnv, row: Mapping[Hashable, Any]) -> Iterator[str]:
    """Check what a confirmed trial tells of its best episode against the rest of the row."""
    if not budgets_in(row):
        return
    if not agree(row["best_reward"], row["reward"]):
        yield f"best_reward is {row['best_reward']!r}, the reward of its episode {row['reward']!r}"
    last = row[f"confirmed_validation_{budgets_in(row)[-1]}"]
    luck = row["validation_accuracy"] - last
    # The episode with the best reward is the most accurate one where the error is the reward.
    is_exact = env.reward_fn is get_reward("err") and env.reward_at == "episode"
    if not (agree(row["luck"], luck, 1e-12) or (row["luck"] > luck and not is_exact)):
        yield f"luck is {row['luck']!r}, its accuracies give {luck!r}"


def _differences(
    stored: Mapping[Any, Any], now: Mapping[str, float], tolerance: float
) -> Iterator[str]:
    return (
        f"{name} is {stored[name]!r}, its replay gives {value!r}"
        for name, value in now.items()
        if not agree(stored[name], value, max(tolerance, 1e-12))
    )


def _replay_policy(
    env: LayerwiseCompressionEnv, row: Mapping[Hashable, Any], tolerance: float, done: Confirmed
) -> Iterator[str]:
    """Train what a trial's final policy does again, where that was confirmed."""
    if agree(row.get("final_confirmed"), None):
        return
    try:
        now = final_columns([_confirm(env, row["final_actions"], o, done) for o in ORDERS])
    except ValueError:
        return  # which `verify` says itself
    yield from _differences(row, now, tolerance)


def _confirm(env: LayerwiseCompressionEnv, text: str, order: int, done: Confirmed) -> Rerun:
    if (text, order) not in done:
        actions = tuple(float(action) for action in text.split())
        done[text, order] = rerun_actions(env, actions, order, with_test=True)
    return done[text, order]


def _stored_orders(folder: Path, budget: int) -> dict[int, tuple[float, float]]:
    """Return what a trial's own file says, (validation, test) accuracies by order."""
    path = folder / "confirmation.csv"
    if not path.is_file():
        return {}
    kinds = {"budget": int, "noise_seed": int, "validation": float, "test": float}
    rows = parse(path, read_table(path, kinds), kinds)
    return {
        int(row["noise_seed"]): (row["validation"], row["test"])
        for row in rows[rows["budget"] == budget].to_dict("records")
    }


def order_in(row: Mapping[Hashable, Any], column: str) -> int | None:
    """Return a noise seed in a row; None where there is none."""
    value = row.get(column)
    if value is None or value == "" or value != value:
        return None
    return int(float(value))


def agree(stored: Any, now: Any, tolerance: float = 0.0) -> bool:
    """Tell whether two texts are the same, or two numbers, where NaN and None mean none."""
    if isinstance(stored, str):
        return bool(stored == now)
    first, second = (math.nan if value is None else value for value in (stored, now))
    if math.isnan(first) or math.isnan(second):
        return math.isnan(first) and math.isnan(second)
    return math.isclose(first, second, rel_tol=tolerance, abs_tol=tolerance)


def main(arguments: list[str]) -> None:
    """Run from the command line; exit with 1 and a line for each mismatch, if there is any."""
    mismatches = replay(parse_command(Config, arguments, __doc__, "replay"), Console())
    if mismatches:
        sys.exit("\n".join(mismatches))
