"""What the algorithms here refuse on top of Stable-Baselines3: all that would fail later."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar

import gymnasium as gym
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file, recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, TensorDict
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from agents.common.arguments import SEED, Range, check_device, checked, checked_all, in_a_line

__all__ = ["CheckedAlgorithm"]


class CheckedAlgorithm(BaseAlgorithm):
    """An algorithm whose arguments, policy and environment are checked before anything is built.

    A subclass calls `_check_settings` first in its `_setup_model`, which `load` calls as well,
    after it has set the attributes: what a file holds, or the arguments of `load`, is checked like
    the arguments of the constructor.

    Args:
        policy: see `_check_policy`.
        env: see `_check_spaces`; None when a file is loaded without one.
        settings: arguments of the next class.

    Raises:
        ValueError: if an argument, the policy or a space cannot work.
    """

    ranges: ClassVar[Mapping[str, Range]] = {"seed": SEED}
    """What those attributes may be that are numbers."""
    policy_base: ClassVar[type[nn.Module]] = BasePolicy
    """The class that policies must be of."""

    def __init__(self, policy: Any, env: GymEnv | str | None, **settings: Any) -> None:
        """Check what has been given."""
        check_device(settings.get("device", "auto"))
        settings |= checked_all(settings, self.ranges)
        self._check_policy(policy)
        if env is not None:
            env = maybe_make_env(env, settings.get("verbose", 0))
            if isinstance(env, gym.Env | VecEnv):  # what it is otherwise, the next class says
                self._check_spaces(env.observation_space, env.action_space)
        super().__init__(policy, env, **settings)

    def _check_settings(self) -> None:
        """Check the attributes, which then are Python's own numbers.

        Raises:
            ValueError: if one of them, the policy or a space cannot work.
        """
        vars(self).update(checked_all(vars(self), self.ranges))
        self._check_policy(self.policy_class)
        if not hasattr(self, "observation_space"):
            raise ValueError("expected an environment, got None")
        self._check_spaces(self.observation_space, self.action_space)

    @classmethod
    def _check_policy(cls, policy: Any) -> None:
        is_known = policy in cls.policy_aliases if isinstance(policy, str) else cls._accepts(policy)
        if not is_known:
            names = ", ".join(map(repr, cls.policy_aliases))
            raise ValueError(
                f"policy must be {names} or a subclass of {cls.policy_base.__name__} that "
                f"{cls.__name__} can train, got {in_a_line(repr(policy))}"
            )

    @classmethod
    def _accepts(cls, policy: Any) -> bool:
        """Return whether something is a class of policies that the algorithm can train."""
        return isinstance(policy, type) and issubclass(policy, cls.policy_base)

    def _check_spaces(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
    ) -> None:
        """Raise a `ValueError` unless the algorithm can work with the spaces."""

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Replace the environment by another with the same spaces.

        Args:
            env: as many environments as before.
            force_reset: reset them before learning goes on.

        Raises:
            ValueError: if there are more or fewer, or their spaces differ.
        """
        env = self._wrap_env(env, self.verbose)
        if env.num_envs != self.n_envs:
            raise ValueError(
                f"expected {self.n_envs} environments, got {env.num_envs}: save the agent and give "
                f"them to {type(self).__name__}.load(path, env)"
            )
        super().set_env(env, force_reset)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed every pseudo-random generator.

        Args:
            seed: from 0 to 2^32 - 1; None leaves them alone.

        Raises:
            ValueError: if it is something else.
        """
        super().set_random_seed(checked("seed", seed, SEED))

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """Return a copy of the parameters, which learning does not change."""
        return deepcopy(super().get_parameters())

    def set_parameters(
        self,
        load_path_or_dict: str | TensorDict,
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """Take the parameters of a file, or a copy of given ones: optimizers change what they get.

        Args:
            load_path_or_dict: a file that `save` has written, or what `get_parameters` returns.
            exact_match: refuse it if a parameter is missing or unknown.
            device: where a file is read to.

        Raises:
            ValueError: if a parameter does not fit; then none is taken.
        """
        if isinstance(load_path_or_dict, dict):
            parameters: Any = deepcopy(load_path_or_dict)
        else:
            _, parameters, _ = load_from_zip_file(load_path_or_dict, load_data=False, device=device)
        for name in set(parameters) & set(self._get_torch_save_params()[0]):
            module = recursive_getattr(self, name)
            if isinstance(module, nn.Module):
                self._check_state(name, module.state_dict(), parameters[name], exact_match)
        super().set_parameters(parameters, exact_match, device)

    def _check_state(
        self, name: str, own: TensorDict, given: TensorDict, exact_match: bool
    ) -> None:
        """Raise unless a module's given state has the names and shapes of its own."""
        if exact_match and own.keys() != given.keys():
            different = in_a_line(sorted(own.keys() ^ given.keys()))
            raise ValueError(f"expected the parameters of {name}, others are {different}")
        for key in own.keys() & given.keys():
            expected, got = tuple(own[key].shape), tuple(given[key].shape)
            if expected != got:
                raise ValueError(f"expected {name}.{key} of shape {expected}, got {got}")

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if self.env is None:
            raise ValueError("expected an environment to learn in, got None: call set_env first")
        checked("total_timesteps", total_timesteps, Range(0))
        return super()._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
