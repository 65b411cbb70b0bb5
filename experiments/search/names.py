"""Ids of tasks, with and without their namespace."""

from __future__ import annotations

import gymnasium as gym

import compress_env  # noqa: F401  # registers the tasks
from compress_env.names import check_name

__all__ = ["full_name", "short_name", "task_id"]

NAMESPACE = "compress_env/"


def short_name(task: str) -> str:
    """Return a task's id without its namespace."""
    return task.removeprefix(NAMESPACE)


def full_name(task: str) -> str:
    """Return a task with its namespace where that makes it one; others as they are."""
    full = f"{NAMESPACE}{task}"
    return full if full in gym.registry else task


def task_id(name: str, *, others: bool = False) -> str:
    """Return the Gymnasium id of a task, which may be given without its namespace.

    Args:
        name: The task.
        others: Whether ids of other packages, or of a module before a colon, may be given too.

    Raises:
        ValueError: If there is no such task; the nearest one is named.
    """
    own = [task for task in gym.registry if task.startswith(NAMESPACE)]
    task = full_name(name)
    if task in own or (others and (":" in task or task in gym.registry)):
        return task
    return check_name("task", short_name(name), map(short_name, own))
