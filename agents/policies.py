"""Policies: a Gaussian actor with a bounded mean, a Q-critic, and the targets of both.

Shapes: B observations, D action dimensions (the product of the action space's shape). Actions
are in the units of the action space everywhere; only inside the critic are they mapped to [-1, 1].
"""

from copy import deepcopy
from functools import partial
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel, ContinuousCritic
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    FlattenExtractor,
    create_mlp,
    get_actor_critic_arch,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from agents.common.arguments import Range, checked, in_a_line
from agents.common.spaces import check_spaces

__all__ = ["GaussianActor", "MlpPolicy", "QCriticPolicy", "check_spaces"]

Ensemble: TypeAlias = Literal["mean", "lowest"]
_HIDDEN_UNITS = 64
N_LOWEST = 2
"""Networks of an ensemble that a target is the lowest of."""


class GaussianActor(BaseModel):
    """``N(low + (high - low) * sigmoid(net(s)), (std * (high - low) / 2)^2)``.

    The standard deviation does not depend on the state. ``log_std`` is relative to half the width
    of the action space **(ours)**, so that one initial value suits every Box.

    Args:
        observation_space: observations that ``features_extractor`` accepts.
        action_space: a Box with finite bounds, any shape.
        net_arch: hidden layers' units.
        features_extractor: turns an observation into ``features_dim`` numbers.
        features_dim: length of the features.
        activation_fn: activation of the hidden layers.
        log_std_init: initial natural logarithm of the relative standard deviation.
        normalize_images: divide image observations by 255.
    """

    features_extractor: BaseFeaturesExtractor
    low: th.Tensor
    high: th.Tensor
    half_width: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        log_std_init: float = -0.5,
        normalize_images: bool = True,
    ) -> None:
        """Build the network; the class's docstring lists the arguments."""
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        action_dim = get_action_dim(action_space)
        self.net = nn.Sequential(*create_mlp(features_dim, action_dim, net_arch, activation_fn))
        self.log_std = nn.Parameter(th.full((action_dim,), float(log_std_init)))
        # action_space.shape -> (D,)
        # Copies: a state that is loaded later must not be written into the environment's bounds.
        self.register_buffer("low", th.tensor(action_space.low.reshape(-1), dtype=th.float32))
        self.register_buffer("high", th.tensor(action_space.high.reshape(-1), dtype=th.float32))
        self.register_buffer("half_width", (self.high - self.low) / 2.0)

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """Return the mean actions, (B, D), strictly inside the bounds."""
        features = self.extract_features(obs, self.features_extractor)
        return self.low + 2.0 * self.half_width * th.sigmoid(self.net(features))

    def distribution(self, obs: PyTorchObs) -> DiagGaussianDistribution:
        """Return the Gaussian over unclipped actions."""
        gaussian = DiagGaussianDistribution(self.low.numel())
        return gaussian.proba_distribution(self(obs), self.log_std + th.log(self.half_width))


class QCriticPolicy(ActorCriticPolicy):
    """Actor, critic Q(s, a) and a slowly following copy of each.

    With `n_critics` above 1 the critic is an ensemble: networks that differ in how they begin and
    learn the same targets. Its value is the mean over them; a target is the lower one of two that
    are drawn anew for each minibatch (Chen et al. 2021, REDQ, arXiv 2101.05982). With
    ``ensemble="lowest"`` the value is the lowest: networks differ most where they have seen
    nothing, so that the actor is not drawn there (An et al. 2021, arXiv 2110.01548).

    The actor samples from an unbounded Gaussian; what an environment executes, and what every
    critic call sees, is that sample clipped to the bounds.

    Args:
        observation_space: Box, Discrete, MultiDiscrete or MultiBinary.
        action_space: a Box with finite bounds, any shape.
        lr_schedule: learning rate as a function of the remaining progress (1 to 0).
        net_arch: hidden units, one list for both networks or
            ``dict(pi=[...], qf=[...])``; None is one hidden layer of 64 in each.
        activation_fn: activation of the hidden layers of both networks.
        log_std_init: initial log standard deviation, relative to half the action space's width.
        n_critics: networks in the critic's ensemble.
        ensemble: ``"mean"`` or ``"lowest"``, what of them the actor learns from.
        use_sde: must be False; accepted because Stable-Baselines3 passes it.
        features_extractor_class: built once for the actor and once for the critic.
        features_extractor_kwargs: its arguments.
        normalize_images: divide image observations by 255.
        optimizer_class: built once for the actor and once for the critic.
        optimizer_kwargs: its arguments, learning rate excluded.

    Raises:
        ValueError: if a space is not supported, or with ``use_sde=True``.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        log_std_init: float = -0.5,
        n_critics: int = 1,
        ensemble: Ensemble = "mean",
        use_sde: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Build all four networks; the class's docstring lists the arguments."""
        check_spaces(observation_space, action_space)
        _check_net_arch(net_arch)
        self.n_critics = checked("n_critics", n_critics, Range(1, is_whole=True))
        if ensemble not in get_args(Ensemble):
            raise ValueError(f"ensemble must be one of {get_args(Ensemble)}, got {ensemble!r}")
        self.ensemble = ensemble
        if use_sde:
            raise ValueError("use_sde must be False: the actor's noise is a plain Gaussian")
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[_HIDDEN_UNITS] if net_arch is None else net_arch,
            activation_fn=activation_fn,
            log_std_init=log_std_init,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            share_features_extractor=False,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        self.actor = self._make_actor()
        self.critic = self._make_critic()
        self.actor_target = deepcopy(self.actor).requires_grad_(False)
        self.critic_target = deepcopy(self.critic).requires_grad_(False)
        for module in (self.actor, self.critic):
            module.optimizer = self.optimizer_class(
                module.parameters(),
                lr=lr_schedule(1),  # type: ignore[call-arg]
                **self.optimizer_kwargs,
            )
        self.set_training_mode(False)

    def _make_actor(self) -> GaussianActor:
        net_arch, _ = get_actor_critic_arch(self.net_arch)
        actor = GaussianActor(
            self.observation_space,
            cast(spaces.Box, self.action_space),
            net_arch,
            self.pi_features_extractor,
            self.pi_features_extractor.features_dim,
            self.activation_fn,
            self.log_std_init,
            self.normalize_images,
        )
        # A small last layer starts the mean near the middle of the box for every observation.
        actor.net[-1].apply(partial(self.init_weights, gain=0.01))
        return actor

    def _make_critic(self) -> ContinuousCritic:
        _, net_arch = get_actor_critic_arch(self.net_arch)
        return ContinuousCritic(
            self.observation_space,
            cast(spaces.Box, self.action_space),
            net_arch,
            self.vf_features_extractor,
            self.vf_features_extractor.features_dim,
            self.activation_fn,
            self.normalize_images,
            n_critics=self.n_critics,
            share_features_extractor=False,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        inherited = super()._get_constructor_parameters()
        for name in ("squash_output", "full_std", "use_expln", "ortho_init"):
            del inherited[name]
        return inherited | {"n_critics": self.n_critics, "ensemble": self.ensemble}

    def set_training_mode(self, mode: bool) -> None:
        """Put actor and critic into training or evaluation mode; the targets never train."""
        if self.training == mode:
            return  # walking through all modules at every step takes a tenth of a search's time
        self.train(mode)
        self.actor_target.train(False)
        self.critic_target.train(False)

    def get_distribution(self, obs: PyTorchObs) -> DiagGaussianDistribution:
        """Return the actor's Gaussian over unclipped actions."""
        return self.actor.distribution(obs)

    def action_std(self) -> th.Tensor:
        """Return the actor's standard deviation, (D,), in the units of the action space."""
        return self.actor.log_std.exp() * self.actor.half_width

    def q_values(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Return Q(s, clip(a)) of the ensemble (`ensemble`), (B, 1), for actions (B, D)."""
        each = self.each_q_value(obs, actions)
        if self.ensemble == "lowest":
            return each.amin(dim=1, keepdim=True)
        return each.mean(dim=1, keepdim=True)

    def each_q_value(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Return Q(s, clip(a)) of each network of the ensemble, (B, n_critics)."""
        return self._q(self.critic, obs, actions)

    @th.no_grad()
    def predict_q_values(
        self, observation: np.ndarray, actions: np.ndarray, of_target: bool = False
    ) -> th.Tensor:
        """Return Q(s, a) or Q'(s, a), the mean of the ensemble, (n, 1), without a gradient.

        Args:
            observation: (n, *shape).
            actions: (n, *shape), as executed.
            of_target: Whether the target critic is asked.
        """
        obs, _ = self.obs_to_tensor(observation)
        critic = self.critic_target if of_target else self.critic
        # (n, *shape) -> (n, D)
        executed = th.as_tensor(actions, device=self.device).float().flatten(1)
        return self._q(critic, obs, executed).mean(dim=1, keepdim=True)

    def target_q_values(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Return Q'(s, clip(a)), (B, 1), for actions (B, D): the lower one of two networks."""
        values = self._q(self.critic_target, obs, actions)
        if self.n_critics > N_LOWEST:
            values = values[:, th.randperm(self.n_critics, device=values.device)[:N_LOWEST]]
        return values.amin(dim=1, keepdim=True)

    def _q(self, critic: ContinuousCritic, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Clip the actions to the bounds, map them onto [-1, 1] and judge them, (B, n_critics)."""
        executed = th.clamp(actions, self.actor.low, self.actor.high)
        unit = (executed - self.actor.low) / self.actor.half_width - 1.0
        # n_critics times (B, 1) -> (B, n_critics)
        return th.cat(critic(obs, unit), dim=1)

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """Return Q(s, pi(s)), (B, 1), the value of the mean action."""
        return self.q_values(obs, self.actor(obs))

    def forward(
        self, obs: th.Tensor, deterministic: bool = False
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Return unclipped actions (B, *shape), Q(s, pi(s)) (B, 1) and log-probabilities (B,)."""
        gaussian = self.get_distribution(obs)
        actions = gaussian.get_actions(deterministic=deterministic)
        log_prob = gaussian.log_prob(actions)
        # (B, D) -> (B, *shape)
        shaped = actions.reshape((-1, *cast(spaces.Box, self.action_space).shape))
        return shaped, self.predict_values(obs), log_prob

    def evaluate_actions(
        self, obs: PyTorchObs, actions: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """Return Q(s, pi(s)) (B, 1), log-probabilities (B,) and entropies (B,), in nats.

        Args:
            obs: B observations.
            actions: (B, D), unclipped: the log-probability of a clipped action is that of
                another event.
        """
        gaussian = self.get_distribution(obs)
        return self.predict_values(obs), gaussian.log_prob(actions), gaussian.entropy()


MlpPolicy = QCriticPolicy
"""The name that Stable-Baselines3's agents take."""


def _check_net_arch(net_arch: Any) -> None:
    """Raise unless hidden layers are told as one list of whole numbers, or one for each network."""
    is_pair = isinstance(net_arch, dict) and net_arch.keys() == {"pi", "qf"}
    for layers in net_arch.values() if is_pair else [net_arch or []]:
        if not isinstance(layers, list | tuple):
            raise ValueError(
                "net_arch must be a list of units or {'pi': a list, 'qf': a list}, got "
                f"{in_a_line(repr(net_arch))}"
            )
        for n_units in layers:
            checked("net_arch", n_units, Range(1, is_whole=True))
