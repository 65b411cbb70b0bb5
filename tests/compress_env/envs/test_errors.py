"""What an error inside a step leaves behind, and what a failed step earns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.task.rewards import REWARDS, RewardInput
from compress_env.task.task import CompressionTask
from tests.compress_env.envs.fakes import Sensitive, as_text, make, take

ACTIONS = [0.5, -0.3, 0.1, 0.9, -1.0, 0.2, 0.4, 0.6]
OTHERS: dict[str, Callable[[RewardInput], float]] = {
    "accuracy minus cost": lambda x: x.accuracy - 2.0 * x.cost / x.cost_high,
    "cost": lambda x: x.cost / x.cost_high,
    "errors": lambda x: -x.accuracy,
    "positive": lambda x: 3.0 + x.accuracy,
    "few multiply-accumulates are bad": lambda x: -1e9 / x.macs,
    "half the cost": lambda x: abs(x.cost / x.cost_high - 0.5),
}


class Scripted:
    """Says given accuracies, or raises given errors, one after the other."""

    def __init__(self, *script: Any) -> None:
        self._script = list(script)

    def __call__(self, model: nn.Module) -> float:
        event = self._script.pop(0)
        if isinstance(event, BaseException):
            raise event
        return float(event)


def play(env: LayerwiseCompressionEnv) -> tuple[float, bool]:
    """Return what an episode earns, and whether it has failed."""
    env.reset()
    total, done = 0.0, False
    info: dict[str, Any] = {}
    while not done:
        _, reward, done, _, info = env.step(np.array([0.0], np.float32))
        total += float(reward)
    return total, "error" in info


class TestFailing:
    @settings(max_examples=25, deadline=None)
    @given(
        name=st.sampled_from([*REWARDS, *OTHERS]),
        kind=st.sampled_from(["magnitude", "bits"]),
        reward_at=st.sampled_from(["layer", "episode"]),
        accuracies=st.lists(st.floats(0.0, 1.0), min_size=8, max_size=8),
        n_before=st.integers(0, 3),
    )
    def test_never_pays(
        self, name: str, kind: str, reward_at: Any, accuracies: list[float], n_before: int
    ) -> None:
        options: dict[str, Any] = {"reward": OTHERS.get(name, name), "reward_at": reward_at}
        n_before = n_before if reward_at == "layer" else 0
        script = [*accuracies[:n_before], float("nan")]
        failed, is_failed = play(_unstored(kind, Scripted(*script), **options))
        finished, _ = play(_unstored(kind, Scripted(*accuracies), **options))
        assert is_failed
        assert failed <= finished + 1e-9 * abs(finished)

    def test_costs_the_lower_bound_for_every_step_that_was_still_scored(self) -> None:
        for reward_at, scores, expected in (
            ("layer", [float("nan")], -4.0),
            ("layer", [0.75, 0.5, float("nan")], -0.25 - 0.5 - 2.0),
            ("layer", [1.0, 1.0, 1.0, float("nan")], -1.0),
            ("episode", [float("nan")], -1.0),
        ):
            env = _unstored("bits", Scripted(*scores), reward_at=reward_at)
            earned, is_failed = play(env)
            assert earned == pytest.approx(expected) and is_failed

    def test_is_told_in_the_terms_of_the_reward(self) -> None:
        env = _unstored("bits", Scripted(0.5, float("nan")))
        env.reset()
        take(env, [0.5])
        _, reward, *_, info = env.step(np.zeros(1, np.float32))
        assert info["reward_terms"] == {"reward": reward} == {"reward": -3.0}


def _unstored(kind: str, scorer: Any, **options: Any) -> LayerwiseCompressionEnv:
    return make(kind, scorer=scorer, finetune_steps=0, store=None, **options)


class Fragile(Sensitive):
    """Raises what it is told to, once."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __call__(self, model: nn.Module) -> float:
        error, self.error = self.error, None
        if error is not None:
            model.train()  # what it leaves behind must not count
            next(model.parameters()).data.zero_()
            raise error
        return super().__call__(model)


class FailingLoop:
    """A training loop that raises what it is told to, once."""

    fingerprint = "failing loop"

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    def __call__(self, model: nn.Module, n_steps: int) -> None:
        error, self.error = self.error, None
        next(model.parameters()).data.mul_(0.9 if error is None else 0.0)
        if error is not None:
            raise error


def _observed(env: LayerwiseCompressionEnv, actions: list[float]) -> list[str]:
    return [*take(env, actions), str(env.episode_state()["actions"]), str(env.n_lookups)]


class TestErrors:
    @pytest.mark.parametrize("kind", ["magnitude", "channel and batch norm", "bits"])
    @pytest.mark.parametrize("option", ["memory", None])
    @pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no")], ids=repr)
    @pytest.mark.parametrize("lent", [False, True], ids=["kept", "lent"])
    def test_a_step_that_raises_has_not_happened(
        self, kind: str, option: Any, error: BaseException, lent: bool
    ) -> None:
        scorers = Fragile(), Fragile()
        whole, env = (make(kind, scorer=scorer, store=option) for scorer in scorers)
        for one in (whole, env):
            one.reset(seed=1)
            take(one, ACTIONS[:1])
            if lent:
                next(one.live_model().parameters()).data.mul_(0.5)
        scorers[1].error = error
        with pytest.raises(type(error)):
            env.step(np.array([-0.9], np.float32))
        assert env.episode_state()["actions"] == whole.episode_state()["actions"]
        assert _observed(env, ACTIONS[1:]) == _observed(whole, ACTIONS[1:])

    @pytest.mark.parametrize("kind", ["magnitude", "bits"])
    @pytest.mark.parametrize("option", ["memory", None])
    @pytest.mark.parametrize("lent", [False, True], ids=["kept", "lent"])
    def test_so_has_a_step_whose_training_loop_raises(
        self, kind: str, option: Any, lent: bool
    ) -> None:
        loops = FailingLoop(), FailingLoop()
        whole, env = (make(kind, finetuner=loop, store=option) for loop in loops)
        for one in (whole, env):
            one.reset(seed=1)
            take(one, ACTIONS[:1])
            if lent:
                one.live_model()
        loops[1].error = KeyError("no such label")
        with pytest.raises(KeyError, match="no such label"):
            env.step(np.array([-0.9], np.float32))
        assert _observed(env, ACTIONS[1:]) == _observed(whole, ACTIONS[1:])

    @pytest.mark.parametrize(
        "error", [FloatingPointError("loss is nan"), torch.OutOfMemoryError("out of memory")]
    )
    def test_a_training_loop_that_diverges_fails_the_step(self, error: Exception) -> None:
        env = make(finetuner=FailingLoop(error))
        env.reset()
        *_, done, _, info = env.step(np.zeros(1, np.float32))
        assert done and str(error) in info["error"]
        env.reset()
        assert "error" not in env.step(np.zeros(1, np.float32))[-1]

    def test_an_interrupted_fine_tuning_has_not_happened(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, env = make(store=None), make(store=None)
        for one in (whole, env):
            one.reset()
            take(one, ACTIONS[:1])
            one.live_model()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(CompressionTask, "reestimate_batch_norm", _interrupt)
            env.step(np.array([-0.9], np.float32))
        assert _observed(env, ACTIONS[1:]) == _observed(whole, ACTIONS[1:])

    def test_so_is_one_whose_reward_cannot_be_told(self) -> None:
        rewards = iter([0.0] * 50)

        def reward(x: RewardInput) -> float:
            return next(rewards)

        env = make(reward=reward)
        rewards = iter([0.25, float("nan"), 0.5])
        env.reset()
        take(env, ACTIONS[:1])
        with pytest.raises(ValueError, match="the reward must be finite, got nan of RewardInput"):
            env.step(np.array([0.1], np.float32))
        assert len(env.episode_state()["actions"]) == 1
        step = env.step(np.array([0.1], np.float32))
        assert step[1] == 0.5 and step[-1]["n_evaluations"] == 2

    def test_an_interrupted_reset_leaves_the_episode(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole, env = (make(transition_noise=True) for _ in range(2))
        for one in (whole, env):
            one.reset(seed=3)
            take(one, ACTIONS[:1])
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(type(env), "_bounds", _interrupt)
            env.reset(seed=4)
        assert take(env, ACTIONS[1:]) == take(whole, ACTIONS[1:])
        assert as_text(env.reset(seed=4)) == as_text(whole.reset(seed=4))


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


class TestActions:
    @pytest.mark.parametrize("end", [-1.0, 1.0])
    def test_rounding_beyond_the_bounds_is_clipped(self, end: float) -> None:
        env, twin = make(), make()
        env.reset(), twin.reset()
        for beyond in (np.nextafter(np.float32(end), np.float32(2 * end)), end * (1 + 9e-6)):
            outside = env.step(np.array([beyond], np.float32))
            assert as_text(outside) == as_text(twin.step(np.array([end], np.float32)))

    def test_more_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"action must be in \[-1, 1\], got 1.0001"):
            make().step(np.array([1.0001]))


class TestCounts:
    def test_those_of_numpy_are_taken(self) -> None:
        whole: Any = make("bits", seed=3, finetune_steps=2, min_bits=2, snapshot_bytes=1000)
        numbers = {"seed": 3, "finetune_steps": 2, "min_bits": 2, "snapshot_bytes": 1000}
        env: Any = make("bits", **{name: np.int64(n) for name, n in numbers.items()})
        assert as_text(env.reset(seed=np.int32(5))) == as_text(whole.reset(seed=5))
        assert take(env, ACTIONS) == take(whole, ACTIONS)
        assert type(env.task_seed) is type(env.finetune_steps) is type(env.min_bits) is int

    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            ("magnitude", "seed"),
            ("magnitude", "finetune_steps"),
            ("magnitude", "snapshot_bytes"),
            ("magnitude", "channel_round"),
            ("bits", "min_bits"),
            ("bits", "activation_bits"),
        ],
    )
    @pytest.mark.parametrize("value", [True, 1.0, "1"])
    def test_what_is_no_integer_is_refused(self, kind: str, name: str, value: Any) -> None:
        with pytest.raises(TypeError, match=f"{name} must be an int, got {value!r}"):
            make(kind, **{name: value})

    @pytest.mark.parametrize("name", ["batch_size", "evaluation_batch_size", "batch_norm_batches"])
    def test_those_of_fine_tuning_too(self, name: str) -> None:
        env = make(finetune_config={name: np.int64(3)})
        assert type(getattr(env.task.config, name)) is int
        with pytest.raises(TypeError, match=f"{name} must be an int, got True"):
            make(finetune_config={name: True})

    @pytest.mark.parametrize("seed", [True, 1.5])
    def test_of_a_reset_too(self, seed: Any) -> None:
        with pytest.raises(TypeError, match="seed must be an int, got "):
            make().reset(seed=seed)


class Noisy(nn.Module):
    """Two layers, with something at random between them, in evaluation mode too."""

    def __init__(self, disturb: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 3)
        self._disturb = disturb

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self._disturb(torch.relu(self.conv(images)))
        return self.head(torch.relu(self.conv2(hidden)).mean((2, 3)))  # type: ignore[no-any-return]


OWN = torch.Generator().manual_seed(0)
DISTURBANCES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "dropout": lambda x: nn.functional.dropout(x, 0.5, training=True),
    "dropout that hardly ever drops": lambda x: nn.functional.dropout(x, 1e-9, training=True),
    "a layer skipped by Python": lambda x: x * (__import__("random").random() > 1e-9),
    "a layer skipped by NumPy": lambda x: x * float(np.random.rand() > 1e-9),  # noqa: NPY002
    "a generator of its own": lambda x: x + torch.rand(x.shape, generator=OWN),
}


@pytest.mark.parametrize("name", DISTURBANCES)
@pytest.mark.parametrize("kind", ["magnitude", "bits"])
def test_networks_that_are_random_in_evaluation_mode_are_refused(kind: str, name: str) -> None:
    with pytest.raises(ValueError, match="model is random in evaluation mode too, as with drop"):
        make(kind, model=Noisy(DISTURBANCES[name]))


def test_hooks_that_are_random_are_refused() -> None:
    model = Noisy(lambda x: x)
    model.conv.register_forward_hook(lambda module, args, out: nn.functional.dropout(out, 0.5))
    with pytest.raises(ValueError, match="model is random in evaluation mode too"):
        make("bits", model=model)


@pytest.mark.parametrize("draw", ["torch", "random", "numpy"])
def test_what_is_random_in_training_mode_alone_repeats(draw: str) -> None:
    import random

    sources: dict[str, Callable[[], float]] = {
        "torch": lambda: float(torch.rand(())),
        "random": random.random,
        "numpy": lambda: float(np.random.rand()),  # noqa: NPY002
    }
    model = Noisy(lambda x: x)
    model.conv.register_forward_hook(
        lambda module, args, out: out * sources[draw]() if module.training else out
    )
    found = [take(make("bits", model=copy.deepcopy(model), store=None), ACTIONS) for _ in range(2)]
    assert found[0] == found[1]
