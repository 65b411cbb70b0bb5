"""Everything that a Stable-Baselines3 agent needs to go on as if it had never stopped.

`agent.save` leaves out counters, buffers and random states, and is a pickle. Here are tensors and
plain Python values only, which `torch.load(weights_only=True)` reads without running code.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import recursive_getattr

from agents import EpisodeSearch

__all__ = ["agent_state", "random_state", "restore_agent", "restore_random_state"]

State = dict[str, Any]
_COUNTERS = (
    "num_timesteps",
    "_episode_num",
    "_n_updates",
    "_current_progress_remaining",
    "kl_coef",  # which KLPPO adapts
    "cim_coef",  # which CIMPPO adapts
)


def agent_state(agent: BaseAlgorithm) -> State:
    """Return the state of an agent between two rollouts.

    Args:
        agent: Any of Stable-Baselines3's algorithms, a subclass that names its modules in
            `_get_torch_save_params`, or an `EpisodeSearch`. What an on-policy agent has in its
            rollout buffer is used up between two rollouts.
    """
    _, names = agent._get_torch_save_params()
    buffer = getattr(agent, "replay_buffer", None)
    assert agent._last_obs is not None and agent.ep_info_buffer is not None
    return {
        "modules": agent.get_parameters(),
        "tensors": {name: recursive_getattr(agent, name) for name in names},
        "counters": {name: getattr(agent, name) for name in _COUNTERS if hasattr(agent, name)},
        "last_obs": torch.from_numpy(np.asarray(agent._last_obs)),
        "last_episode_starts": torch.from_numpy(np.asarray(agent._last_episode_starts)),
        "ep_info_buffer": list(agent.ep_info_buffer),
        "replay_buffer": None if buffer is None else _buffer_state(buffer),
        "action_space": agent.action_space.np_random.bit_generator.state,
        "random": random_state(),
        "search": agent.search_state() if isinstance(agent, EpisodeSearch) else None,
    }


def restore_agent(agent: BaseAlgorithm, state: State) -> None:
    """Put an agent that was built with the same arguments into a state, and the global generators.

    Raises:
        ValueError: If the state does not fit.
    """
    agent.set_parameters(state["modules"], exact_match=True, device=agent.device)
    with torch.no_grad():
        for name, tensor in state["tensors"].items():
            recursive_getattr(agent, name).copy_(tensor)
    for name, value in state["counters"].items():
        setattr(agent, name, value)
    agent._last_obs = state["last_obs"].numpy()
    agent._last_episode_starts = state["last_episode_starts"].numpy()
    agent.ep_info_buffer = deque(state["ep_info_buffer"], maxlen=agent._stats_window_size)
    agent.ep_success_buffer = deque(maxlen=agent._stats_window_size)
    if state["replay_buffer"] is not None:
        _restore_buffer(agent.replay_buffer, state["replay_buffer"])  # type: ignore[attr-defined]
    agent.action_space.np_random.bit_generator.state = state["action_space"]
    if isinstance(agent, EpisodeSearch):
        agent.restore_search(state["search"])
    restore_random_state(state["random"])


def _buffer_state(buffer: ReplayBuffer) -> State:
    rows = {
        name: torch.from_numpy(array[: buffer.size()])
        for name, array in vars(buffer).items()
        if isinstance(array, np.ndarray) and array.ndim and len(array) == buffer.buffer_size
    }
    return {"rows": rows, "pos": buffer.pos, "full": buffer.full}


def _restore_buffer(buffer: ReplayBuffer, state: State) -> None:
    for name, rows in state["rows"].items():
        getattr(buffer, name)[: len(rows)] = rows.numpy()
    buffer.pos, buffer.full = state["pos"], state["full"]


def random_state() -> State:
    """Return the states of the global generators, from which agents draw."""
    # Stable-Baselines3's action noise draws from NumPy's old global generator.
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: State) -> None:
    """Put the global generators into a state that `random_state` has returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    # Those of the GPUs that are here: there may be fewer than before, or none.
    for device, cuda in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
        torch.cuda.set_rng_state(cuda, device)
