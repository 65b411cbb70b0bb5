"""PPO with a penalty on the policy's change: a KL divergence, or a correntropy-induced metric."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.utils import explained_variance
from torch import nn
from torch.nn import functional as F

from agents.common.arguments import PPO_RANGES, Range, in_a_line
from agents.common.checked_algorithm import CheckedAlgorithm
from agents.common.losses import (
    CIM_FORMS,
    CIMForm,
    adapted_coef,
    clip_fraction,
    clipped_surrogate_loss,
    parameter_shift,
    surrogate_loss,
)
from agents.common.spaces import check_bounds, check_observations
from agents.policies import QCriticPolicy

__all__ = ["CIMPPO", "KLPPO", "PenaltyPPO", "PolicyBatch"]


class PolicyBatch(NamedTuple):
    """What the actor's loss follows from, at B states."""

    advantages: th.Tensor
    """(B,), without gradient."""
    log_prob: th.Tensor
    """(B,) log-probabilities of the actions taken, under the policy being trained."""
    old_log_prob: th.Tensor
    """(B,) those under the policy that has acted."""
    new: Distribution
    """Distributions of the policy being trained."""
    old: Distribution
    """Those of the policy that has acted, without gradient."""


class PenaltyPPO(CheckedAlgorithm, PPO):
    """`stable_baselines3.PPO` with a hook for the policy's loss, and both KL divergences logged.

    With the clipped loss, as it is here, it does exactly what PPO does (a test compares the
    weights); `KLPPO` and `CIMPPO` put another loss into the hook. SB3 has no such hook, so its
    `train` is written anew here, once.

    Logs, besides those of PPO, the divergences between the policy that has acted and the one being
    trained, in nats, means over states: `train/kl_old_new` is KL(old || new) and `train/kl_new_old`
    KL(new || old). Their difference is the asymmetry that arXiv 2110.10522 is about.

    Args:
        policy: As in PPO.
        env: Any environment whose actions are `Box` or `Discrete`.
        kwargs: All other arguments of PPO but `use_sde`.

    Raises:
        ValueError: If the action space is another one, or with `use_sde`.
    """

    ranges: ClassVar[Mapping[str, Range]] = PPO_RANGES
    policy_base: ClassVar[type[nn.Module]] = ActorCriticPolicy

    def __init__(
        self,
        policy: Any,
        env: Any,
        *,
        normalize_advantage: bool = True,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        """Check that the policy's change can be measured."""
        # What PPO asserts where it normalises is checked when the model is set up, also by `load`.
        super().__init__(policy, env, normalize_advantage=False, _init_setup_model=False, **kwargs)
        self.normalize_advantage = normalize_advantage
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._check_settings()
        super()._setup_model()

    def _check_settings(self) -> None:
        super()._check_settings()
        if self.use_sde:
            raise ValueError("use_sde is not supported: its noise is no simple distribution")
        counts = {"batch_size": self.batch_size, "n_steps * n_envs": self.n_steps * self.n_envs}
        for name, count in counts.items():
            if self.normalize_advantage and count < 2:
                raise ValueError(f"{name} must be at least 2 to normalize_advantage, got {count}")

    @classmethod
    def _accepts(cls, policy: Any) -> bool:
        """Return whether it is built as SB3's are and needs nothing but observations to act."""
        return (
            super()._accepts(policy)
            and not issubclass(policy, QCriticPolicy)
            and _n_required(policy.forward) == _n_required(ActorCriticPolicy.forward)
        )

    def _check_spaces(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
    ) -> None:
        check_observations(observation_space, allows_dict=True)
        if isinstance(action_space, spaces.Box):
            check_bounds(action_space)
        elif not isinstance(action_space, spaces.Discrete):
            raise ValueError(f"expected Box or Discrete actions, got {in_a_line(action_space)}")
        elif action_space.start != 0:
            raise ValueError(f"expected Discrete actions from 0 on, got {action_space}")

    def _policy_loss(self, batch: PolicyBatch) -> th.Tensor:
        """Return what the actor minimises, a scalar; here the clipped surrogate."""
        return clipped_surrogate_loss(*batch[:3], self._clip_range)

    def _after_training(self, kl_old_new: float) -> None:
        """Take note of the mean KL(old || new) over the rollout, after the update."""

    def train(self) -> None:
        """Train on the rollout; called by `learn`."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        progress = self._current_progress_remaining
        # Where a schedule ends at 0, the last progress may be a little below it.
        self._clip_range: float = max(self.clip_range(progress), 0.0)  # type: ignore[operator]
        schedule_vf: Any = self.clip_range_vf
        self._clip_range_vf: float | None = None if schedule_vf is None else schedule_vf(progress)
        self._old_policy = copy.deepcopy(self.policy)
        logs: dict[str, list[float]] = {}
        for _ in range(self.n_epochs):
            epoch: dict[str, list[float]] = {}
            is_over = self._train_epoch(epoch)
            for name, values in epoch.items():
                # As in PPO, the estimate is that of the last pass.
                before = [] if name == "approx_kl" else logs.get(name, [])
                logs[name] = [*before, *values]
            self._n_updates += 1
            if is_over:
                break
        kl_old_new, kl_new_old = self._divergences()
        del self._old_policy
        self._after_training(kl_old_new)
        self.logger.record("train/kl_old_new", kl_old_new)
        self.logger.record("train/kl_new_old", kl_new_old)
        self._log(logs)

    def _divergences(self) -> tuple[float, float]:
        """Return the means over the rollout of KL(old || new) and KL(new || old), in nats."""
        buffer = self.rollout_buffer
        n_states = len(buffer.actions)  # in one row, since the first pass
        sums = np.zeros(2)
        for start in range(0, n_states, self.batch_size):
            part = np.arange(start, min(start + self.batch_size, n_states))
            with th.no_grad():
                # In order, as `get` would draw one.
                observations = buffer._get_samples(part).observations
                old = self._old_policy.get_distribution(observations)
                new = self.policy.get_distribution(observations)
                sums += [_kl(old, new).sum().item(), _kl(new, old).sum().item()]
        kl_old_new, kl_new_old = (sums / n_states).tolist()
        return kl_old_new, kl_new_old

    def _train_epoch(self, logs: dict[str, list[float]]) -> bool:
        """Pass once over the rollout; return whether the policy has gone too far."""
        assert isinstance(self.rollout_buffer, RolloutBuffer)
        for data in self.rollout_buffer.get(self.batch_size):
            loss, terms = self._loss(data)
            for name, value in terms.items():
                logs.setdefault(name, []).append(value)
            if self.target_kl is not None and terms["approx_kl"] > 1.5 * self.target_kl:
                return True
            self.policy.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
        return False

    def _loss(self, data: RolloutBufferSamples) -> tuple[th.Tensor, dict[str, float]]:
        """Return the loss of a minibatch, and what is logged of it."""
        actions = data.actions
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        new, values = self._evaluate(data.observations)
        log_prob, entropy = new.log_prob(actions), new.entropy()
        with th.no_grad():
            old = self._old_policy.get_distribution(data.observations)
        advantages = data.advantages
        if self.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        batch = PolicyBatch(advantages, log_prob, data.old_log_prob, new, old)
        policy_loss = self._policy_loss(batch)
        value_loss = F.mse_loss(data.returns, self._clipped_values(values, data.old_values))
        entropy_loss = -th.mean(-log_prob if entropy is None else entropy)
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        with th.no_grad():
            log_ratio = log_prob - data.old_log_prob
            terms = {
                "policy_gradient_loss": policy_loss,
                "value_loss": value_loss,
                "entropy_loss": entropy_loss,
                "loss": loss,
                "approx_kl": th.mean((th.exp(log_ratio) - 1) - log_ratio),
            }
        logged = {name: value.item() for name, value in terms.items()}
        logged["clip_fraction"] = clip_fraction(
            log_prob.detach(), data.old_log_prob, self._clip_range
        )
        return loss, logged

    def _evaluate(self, observations: Any) -> tuple[Distribution, th.Tensor]:
        """Return the policy's distributions and values (B,) at B states."""
        features = self.policy.extract_features(observations)
        if self.policy.share_features_extractor:
            latent_pi, latent_vf = self.policy.mlp_extractor(features)
        else:
            latent_pi = self.policy.mlp_extractor.forward_actor(features[0])
            latent_vf = self.policy.mlp_extractor.forward_critic(features[1])
        values = self.policy.value_net(latent_vf)
        return self.policy._get_action_dist_from_latent(latent_pi), values.flatten()

    def _clipped_values(self, values: th.Tensor, old_values: th.Tensor) -> th.Tensor:
        width = self._clip_range_vf
        if width is None:
            return values
        return old_values + th.clamp(values - old_values, -width, width)

    def _log(self, logs: dict[str, list[float]]) -> None:
        last = {"loss"}
        for name, values in logs.items():
            self.logger.record(f"train/{name}", values[-1] if name in last else np.mean(values))
        explained = explained_variance(
            self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten()
        )
        self.logger.record("train/explained_variance", explained)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", self._clip_range)
        if self._clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", self._clip_range_vf)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_old_policy"]


class KLPPO(PenaltyPPO):
    """PPO with an adaptive KL penalty instead of the clip (arXiv 1707.06347, section 4).

    The actor minimises ``-E[rho A] + kl_coef * E[KL]``. After each rollout the coefficient is
    halved if the mean KL(old || new) is below ``kl_target / 1.5`` and doubled if it is above ``1.5
    kl_target``. It is logged as `train/kl_coef`.

    Args:
        policy: As in PPO.
        env: Any environment whose actions are `Box` or `Discrete`.
        kl_coef: Coefficient at first, positive.
        kl_target: KL divergence to keep to, in nats, positive.
        reverse: Penalise KL(new || old) instead of KL(old || new).
        kwargs: All other arguments of PPO but `use_sde`; `clip_range` is only logged against.

    Raises:
        ValueError: If a setting is out of range; see `PenaltyPPO`.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        **PPO_RANGES,
        "kl_coef": Range(0, is_open=True),
        "kl_target": Range(0, is_open=True),
    }

    def __init__(
        self,
        policy: Any,
        env: Any,
        *,
        kl_coef: float = 1.0,
        kl_target: float = 0.01,
        reverse: bool = False,
        **kwargs: Any,
    ) -> None:
        """Keep the settings, which are checked with all others."""
        self.kl_coef = kl_coef
        self.kl_target = kl_target
        self.reverse = reverse
        super().__init__(policy, env, **kwargs)

    def _policy_loss(self, batch: PolicyBatch) -> th.Tensor:
        new, old = batch.new, batch.old
        divergence = _kl(new, old) if self.reverse else _kl(old, new)
        return surrogate_loss(*batch[:3]) + self.kl_coef * divergence.mean()

    def _after_training(self, kl_old_new: float) -> None:
        self.logger.record("train/kl_coef", self.kl_coef)
        self.kl_coef = adapted_coef(self.kl_coef, kl_old_new, self.kl_target)


class CIMPPO(PenaltyPPO):
    """PPO with a correntropy-induced metric as its penalty (arXiv 2110.10522).

    The actor minimises ``-E[rho A] + cim_coef * E[1 - exp(-||d||^2 / (2 width^2))]``, d being the
    change of the distribution's parameters: means and standard deviations, or probabilities
    **(ours**: a sign-corrected form**)**. Unlike a KL divergence it is symmetric and bounded. With
    `cim_form="metric"` the penalty is ``sqrt(1 - mean_i exp(-d_i^2 / (2 width^2)))``, the metric of
    the literature (`agents.common.losses.cim_metric`): a kernel for each parameter, and the root.

    How far a coefficient lets the policy go depends on the units of its parameters: with the
    default of 1, updates on classic control were ten times shorter than those of `KLPPO`. With
    `kl_target` **(ours)** the coefficient follows the mean KL(old || new), as that of `KLPPO` does.
    The median update is then about as long as there; single ones can be far longer, as a bounded
    penalty does not hold a policy that is far away already. It is logged as `train/cim_coef`.

    Args:
        policy: As in PPO.
        env: Any environment whose actions are `Box` or `Discrete`.
        cim_coef: Coefficient of the penalty, at first if it is adapted, positive.
        width: Width of the Gaussian kernel, in units of the parameters, positive.
        cim_form: `"joint"` or `"metric"`, see above.
        kl_target: KL divergence to keep to, in nats, positive; None leaves the coefficient alone.
        kwargs: All other arguments of PPO but `use_sde`; `clip_range` is only logged against.

    Raises:
        ValueError: If a setting is out of range; see `PenaltyPPO`.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        **PPO_RANGES,
        "cim_coef": Range(0, is_open=True),
        "width": Range(0, is_open=True),
        "kl_target": Range(0, is_open=True, may_be_none=True),
    }

    def __init__(
        self,
        policy: Any,
        env: Any,
        *,
        cim_coef: float = 1.0,
        width: float = 0.3,
        cim_form: CIMForm = "joint",
        kl_target: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the settings, which are checked with all others."""
        self.cim_coef = cim_coef
        self.width = width
        self.cim_form = cim_form
        self.kl_target = kl_target
        super().__init__(policy, env, **kwargs)

    def _check_settings(self) -> None:
        super()._check_settings()
        if self.cim_form not in CIM_FORMS:
            raise ValueError(f"cim_form must be one of {tuple(CIM_FORMS)}, got {self.cim_form!r}")

    def _policy_loss(self, batch: PolicyBatch) -> th.Tensor:
        new, old = _torch_distribution(batch.new), _torch_distribution(batch.old)
        penalty = CIM_FORMS[self.cim_form](parameter_shift(new, old), self.width)
        return surrogate_loss(*batch[:3]) + self.cim_coef * penalty.mean()

    def _after_training(self, kl_old_new: float) -> None:
        self.logger.record("train/cim_coef", self.cim_coef)
        if self.kl_target is not None:
            self.cim_coef = adapted_coef(self.cim_coef, kl_old_new, self.kl_target)


def _kl(first: Distribution, second: Distribution) -> th.Tensor:
    """Return KL(first || second) at each state, (B,), in nats."""
    pair = (_torch_distribution(first), _torch_distribution(second))
    divergence = th.distributions.kl_divergence(*pair)
    return divergence.sum(dim=-1) if divergence.dim() > 1 else divergence


def _torch_distribution(distribution: Distribution) -> th.distributions.Distribution:
    """Return what is inside; SB3 keeps a list there for MultiDiscrete actions alone."""
    inside = distribution.distribution
    assert isinstance(inside, th.distributions.Distribution)
    return inside


def _n_required(function: Callable[..., Any]) -> int:
    """Return the number of arguments that a function cannot do without."""
    parameters = signature(function).parameters.values()
    optional = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return sum(p.default is Parameter.empty and p.kind not in optional for p in parameters)
