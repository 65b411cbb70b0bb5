"""PPO with a Q-critic, for tasks in which every environment step is expensive.

Shapes: B states of a minibatch, D action dimensions.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self, get_args

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, ReplayBufferSamples, Schedule
from stable_baselines3.common.utils import FloatSchedule, polyak_update, update_learning_rate
from torch import nn

from agents.common.arguments import PPO_RANGES, Range, checked
from agents.common.episodes import Steps, best_steps
from agents.common.losses import (
    Advantage,
    clip_fraction,
    clipped_surrogate_loss,
    imitation_loss,
    q_loss,
    regularized_action,
    td_target,
)
from agents.common.paper import PAPER, PAPER_ENVS
from agents.common.spaces import check_spaces
from agents.overestimation import OverestimationCallback
from agents.policies import MlpPolicy, QCriticPolicy
from agents.prior import PriorActions, PriorPolicy, collected_actions, sampled_actions
from agents.replay import ReplayPPO

__all__ = ["PAPER", "PAPER_ENVS", "Advantage", "PriorPolicy", "QCriticPPO"]


class QCriticPPO(ReplayPPO):
    """Proximal policy optimisation whose advantages come from Q(s, a), not from returns.

    Source: Zhan, Lin & Cao 2021 (arXiv 1912.02254). Its four points:

    1. *Computational constraint.* One update per environment step (``n_steps=1``), with N
       environments in parallel, on sampled Q-values and without multi-step advantages such as
       GAE's. Transitions go into a replay buffer, so an expensive step is used many times.
    2. *PPO-clip* against the prior policy; ``advantage`` and ``clip_range`` choose the form.
    3. *Smoothed updates.* Target actor and target critic follow with Polyak coefficient ``tau``;
       ``tau=1`` switches the smoothing off.
    4. *Target policy regularization.* ``y = r + gamma (1 - done) Q'(s', clip(pi'(s') +
       clip(N(0, sigma), -c', c')))``, pi' being the target actor's mean;
       ``target_policy_noise=0`` switches it off. With ``target_steps`` above 1 **(ours)** r is
       the discounted sum of the replayed rewards up to so many steps ahead or the end of the
       episode, and s' the state after them.

    When to raise ``target_steps``: where an observation does not tell all about earlier decisions,
    a reward at the end cannot reach them through Q'(s', a') alone, as s' looks the same whatever
    they were. The sum of rewards does. Its price: the replayed later actions are of older
    policies, and in episodes no longer than ``target_steps`` every target is the plain return, so
    that points 3 and 4 do nothing for the critic.

    **What one update does (ours, where the paper is silent).** With ``n_steps=1`` and one
    environment the rollout is a single state, too little for a policy gradient. Each of the
    ``gradient_steps`` rounds of an update therefore draws one minibatch from the replay buffer and

    - takes one step on the critic's loss ``mean((y - Q(s, a))^2)``;
    - in every ``policy_delay``-th round, samples ``n_action_samples`` fresh actions per state from
      the *target* actor, which is the prior policy of the ratio, with the log-probability that it
      gives them, and takes ``n_epochs`` steps on the clipped surrogate over these pairs;
    - moves both targets by ``tau``.

    Where a step costs far more than an update, more rounds make more of it, if an ensemble of
    critics keeps them from believing each other's errors (Chen et al. 2021, REDQ): more
    ``gradient_steps`` with as much ``policy_delay``, and ``policy_kwargs={"n_critics": 5}``.

    **Imitation of the best episodes (ours).** With ``imitation_coef`` above 0 the actor's loss has
    another term, that weight times the mean of ``((pi(s) - a) / half the box's width)^2`` over the
    states and actions of the ``n_elites`` episodes in the replay buffer with the highest returns.
    The policy is then drawn to the mean of the best, as a distribution in the cross-entropy method
    is (Rubinstein 1999); compare self-imitation (Oh et al. 2018, arXiv 1806.05635).

    As the actions come from the prior policy itself, the ratio needs no further correction for
    replayed data, and stored log-probabilities, stale after a few updates, are not needed. With
    ``tau=1`` the prior policy is the one at the start of the round, as in ordinary PPO.

    With ``prior_policy="behavior"`` (the paper) the surrogate is over the newest ``n_steps`` times
    N transitions instead: the actions taken there, unclipped, with the log-probability that the
    policy which took them gave them. Uniformly random actions come from no such policy, so the
    actor rests while there are only those. `paper` has all that the paper asks for.

    **Clipped actions.** An environment executes the Gaussian sample clipped to the action space;
    the replay buffer stores this executed action. Likewise the critic sees every sampled action
    clipped, whereas both log-probabilities of the ratio are those of the *unclipped* sample. The
    surrogate is then an unbiased estimate for the policy "sample, then clip", and a Gaussian
    density is never evaluated at a clipped point, where it would not be that of the event.

    **Advantage.** ``"q"`` is Q(s, a) (the paper); ``"q_baseline"`` is Q(s, a) - Q(s, pi(s)), pi
    being the prior policy's mean **(ours)**. ``normalize_advantage`` divides by the root mean
    square and subtracts nothing, so that it does not add a baseline to ``"q"``.

    **Ends of episodes.** A terminated transition has no value after it; a truncated one
    (``info["TimeLimit.truncated"]``) is bootstrapped from its real last observation.

    Logged: ``train/q_loss``, ``train/q_mean``, ``train/q_overestimation`` (Q minus the observed
    discounted return of the same transitions, see `agents.OverestimationCallback`; one record per
    episode in ``overestimation.records``), ``train/policy_loss``, ``train/clip_fraction`` (share
    of ratios outside the clip range), ``train/target_action_shift`` (mean absolute difference
    between the regularised target action and pi'(s'), in action units), ``train/std``,
    ``train/learning_rate``, ``train/actor_learning_rate``, ``train/n_updates`` (rounds).

    The defaults are for 100 to 300 short episodes whose steps cost far more than an update.

    Args:
        policy: ``"MlpPolicy"`` or a subclass of `agents.policies.QCriticPolicy`.
        env: an environment, or the id of a registered one, whose action space is a Box with
            finite bounds.
        learning_rate: of the critic; a number, or a function of the remaining progress (1 to 0).
        n_steps: steps in each environment per update.
        buffer_size: transitions kept, over all environments.
        learning_starts: steps before the first update, over all environments.
        random_starts: act uniformly at random until then; else as the policy does.
        batch_size: states per minibatch.
        gradient_steps: rounds per update, see above.
        policy_delay: rounds per round in which the actor learns too.
        n_epochs: actor steps per round.
        prior_policy: ``"target"`` or ``"behavior"``, see above.
        n_action_samples: actions per state in the surrogate, K, where the target actor is asked.
        target_steps: rewards summed in a critic target, at most, see point 4.
        actor_learning_rate: of the actor, likewise; None for the critic's. An actor as fast as its
            critic runs after the errors of the first episodes into the corners of the box.
        tau: Polyak coefficient in (0, 1].
        gamma: discount factor in [0, 1].
        imitation_coef: weight of the imitation of the best episodes; 0 for none.
        n_elites: episodes that are imitated.
        advantage: ``"q"`` or ``"q_baseline"``.
        normalize_advantage: scale the advantages of a minibatch to a root mean square of 1.
        clip_range: c of the clipped surrogate, or a function of the remaining progress;
            ``math.inf`` switches the clipping off.
        target_policy_noise: sigma, relative to half the width of the action space.
        target_noise_clip: c', relative likewise.
        ent_coef: weight of the entropy bonus.
        max_grad_norm: gradients of either network are scaled down to this norm.
        stats_window_size: episodes averaged in ``rollout/``.
        tensorboard_log: folder for TensorBoard, or None.
        policy_kwargs: arguments of the policy (``net_arch``, ``log_std_init``, ``n_critics``, ...).
        verbose: 0 silent, 1 information, 2 debugging.
        seed: of every pseudo-random generator; same seed, same weights on CPU.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        _init_setup_model: build the networks now.

    Raises:
        ValueError: if an argument is outside its range or a space is not supported.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": MlpPolicy}
    policy_base: ClassVar[type[nn.Module]] = QCriticPolicy
    ranges: ClassVar[Mapping[str, Range]] = {
        **PPO_RANGES,
        "buffer_size": Range(1, is_whole=True),
        "learning_starts": Range(0, is_whole=True),
        "gradient_steps": Range(0, is_whole=True),
        "policy_delay": Range(1, is_whole=True),
        "n_action_samples": Range(1, is_whole=True),
        "imitation_coef": Range(0),
        "n_elites": Range(1, is_whole=True),
        "target_steps": Range(1, is_whole=True),
        "actor_learning_rate": Range(0, may_be_none=True, may_be_schedule=True),
        "tau": Range(0, 1, is_open=True),
        "target_policy_noise": Range(0),
        "target_noise_clip": Range(0, may_be_infinite=True),
    }

    def __init__(
        self,
        policy: str | type[QCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-3,
        n_steps: int = 1,
        buffer_size: int = 100_000,
        learning_starts: int = 50,
        random_starts: bool = True,
        batch_size: int = 256,
        gradient_steps: int = 2,
        policy_delay: int = 1,
        n_epochs: int = 1,
        prior_policy: PriorPolicy = "target",
        n_action_samples: int = 8,
        target_steps: int = 1,
        actor_learning_rate: float | Schedule | None = 1e-3,
        tau: float = 0.01,
        gamma: float = 0.99,
        imitation_coef: float = 0.0,
        n_elites: int = 8,
        advantage: Advantage = "q_baseline",
        normalize_advantage: bool = True,
        clip_range: float | Schedule = 0.2,
        target_policy_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        ent_coef: float = 0.0,
        max_grad_norm: float = 0.5,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        """Check the arguments, which the class's docstring lists, and build the networks."""
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=1,  # PPO's checks are about its rollout buffer, which is not used here
            n_epochs=n_epochs,
            gamma=gamma,
            clip_range=clip_range,
            normalize_advantage=False,
            ent_coef=ent_coef,
            max_grad_norm=max_grad_norm,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.buffer_size = buffer_size
        self.learning_starts, self.random_starts = learning_starts, random_starts
        self.batch_size = batch_size
        self.target_steps = target_steps
        self.actor_learning_rate = actor_learning_rate
        self.gradient_steps, self.policy_delay = gradient_steps, policy_delay
        self.prior_policy = prior_policy
        self.n_action_samples = n_action_samples
        self.tau = tau
        self.imitation_coef, self.n_elites = imitation_coef, n_elites
        self.advantage = advantage
        self.normalize_advantage = normalize_advantage
        self.target_policy_noise = target_policy_noise
        self.target_noise_clip = target_noise_clip
        self.replay_buffer: NStepReplayBuffer | None = None
        self.overestimation = OverestimationCallback()
        if _init_setup_model:
            self._setup_model()

    @classmethod
    def paper(
        cls,
        policy: str | type[QCriticPolicy],
        env: GymEnv | str,
        n_envs: int = PAPER_ENVS,
        **kwargs: Any,
    ) -> Self:
        """Build the agent as Zhan, Lin & Cao 2021 (arXiv 1912.02254) have it.

        Raw Q as advantage, one-step targets, c = 0.2, one learning rate for both networks, and the
        ratio against the policy that has collected the data, after each step of N actors.

        Args:
            policy: as in the class.
            env: what the actors act in; of the id of a registered environment `n_envs` are made.
            n_envs: N, if `env` is an id. They are synchronous: each waits for the others.
            kwargs: further arguments of the class, or others than those of `PAPER`.

        Raises:
            ValueError: if an argument is outside its range or a space is not supported.
        """
        if isinstance(env, str):
            env = make_vec_env(env, checked("n_envs", n_envs, Range(1, is_whole=True)))
        return cls(policy, env, **{**PAPER, **kwargs})

    def _check_settings(self) -> None:
        super()._check_settings()
        for name, kind in (("advantage", Advantage), ("prior_policy", PriorPolicy)):
            value, names = getattr(self, name), get_args(kind)
            if value not in names:
                raise ValueError(f"{name} must be one of {names}, got {value!r}")

    def _check_spaces(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
    ) -> None:
        check_spaces(observation_space, action_space)

    def _setup_model(self) -> None:
        self._check_settings()
        super()._setup_model()
        self._rollout = []
        rate = self.actor_learning_rate
        self.actor_lr_schedule = self.lr_schedule if rate is None else FloatSchedule(rate)
        if self.replay_buffer is None:
            self.replay_buffer = NStepReplayBuffer(
                self.buffer_size,
                self.observation_space,
                self.action_space,
                device=self.device,
                n_envs=self.n_envs,
                n_steps=self.target_steps,
                gamma=self.gamma,
            )

    def train(self) -> None:
        """Run ``gradient_steps`` rounds of critic, actor and target updates."""
        assert self.replay_buffer is not None
        if self.num_timesteps <= self.learning_starts or self.gradient_steps == 0:
            return
        self.policy.set_training_mode(True)
        self._update_learning_rates()
        elites = None
        if self.imitation_coef > 0.0:
            elites = best_steps(self.replay_buffer, self.n_elites, self._vec_normalize_env)
        for _ in range(self.gradient_steps):
            batch = self.replay_buffer.sample(self.batch_size, env=self._vec_normalize_env)
            self._update_critic(batch)
            self._n_updates += 1
            may_act = self.prior_policy == "target" or self._rollout
            if may_act and self._n_updates % self.policy_delay == 0:
                self._update_actor(batch.observations, elites)
            self._update_targets()
        self.logger.record("train/std", self.policy.action_std().mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _update_learning_rates(self) -> None:
        self._update_learning_rate(self.policy.critic.optimizer)
        rate = self.actor_lr_schedule(self._current_progress_remaining)
        update_learning_rate(self.policy.actor.optimizer, rate)
        self.logger.record("train/actor_learning_rate", rate)

    def _update_critic(self, batch: ReplayBufferSamples) -> None:
        targets = self._q_targets(batch)
        # (B, n_critics), each towards the same targets (B, 1)
        q_values = self.policy.each_q_value(batch.observations, batch.actions)
        loss = q_values.shape[1] * q_loss(q_values, targets.expand_as(q_values))
        self._step(self.policy.critic, loss)
        self.logger.record("train/q_loss", loss.item() / q_values.shape[1])
        self.logger.record("train/q_mean", q_values.mean().item())

    @th.no_grad()
    def _q_targets(self, batch: ReplayBufferSamples) -> th.Tensor:
        """Return y, (B, 1)."""
        actor = self.policy.actor_target
        mean = actor(batch.next_observations)
        noise = self.target_policy_noise * th.randn_like(mean)
        actions = regularized_action(mean, noise, self.target_noise_clip, actor.low, actor.high)
        next_q_values = self.policy.target_q_values(batch.next_observations, actions)
        self.logger.record("train/target_action_shift", (actions - mean).abs().mean().item())
        assert batch.discounts is not None
        return td_target(batch.rewards, batch.dones, next_q_values, batch.discounts)

    def _update_actor(self, observations: th.Tensor, elites: Steps | None = None) -> None:
        assert callable(self.clip_range)  # a schedule since `_setup_model`
        clip_range = max(self.clip_range(self._current_progress_remaining), 0.0)
        prior = self._sample_prior(observations)
        for _ in range(self.n_epochs):
            distribution = self.policy.get_distribution(prior.observations)
            log_prob = distribution.log_prob(prior.actions)
            loss = clipped_surrogate_loss(prior.advantages, log_prob, prior.log_prob, clip_range)
            entropy = distribution.entropy()
            assert entropy is not None
            whole = loss - self.ent_coef * entropy.mean()
            if elites is not None:
                mean = self.policy.actor(elites.observations)
                shift = imitation_loss(mean, elites.actions, self.policy.actor.half_width)
                whole = whole + self.imitation_coef * shift
            self._step(self.policy.actor, whole)
        fraction = clip_fraction(log_prob.detach(), prior.log_prob, clip_range)
        self.logger.record("train/policy_loss", loss.item())
        self.logger.record("train/clip_fraction", fraction)

    def _sample_prior(self, observations: th.Tensor) -> PriorActions:
        """Return actions of the prior policy and their advantages."""
        settings = self.advantage, self.normalize_advantage
        if self.prior_policy == "behavior":
            return collected_actions(self.policy, self._rollout, *settings)
        return sampled_actions(self.policy, observations, self.n_action_samples, *settings)

    def _step(self, network: BaseModel, loss: th.Tensor) -> None:
        """Take one optimiser step on a network's own parameters."""
        network.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), self.max_grad_norm)
        network.optimizer.step()

    def _update_targets(self) -> None:
        policy = self.policy
        polyak_update(policy.actor.parameters(), policy.actor_target.parameters(), self.tau)
        polyak_update(policy.critic.parameters(), policy.critic_target.parameters(), self.tau)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.actor.optimizer", "policy.critic.optimizer"], []
