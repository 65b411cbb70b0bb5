"""A copy of an environment is at the same place, and follows nobody."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper
from torch import nn

import compress_env
from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.networks.models import build_model, save_checkpoint
from tests.compress_env.envs.fakes import (
    CONFIG,
    KINDS,
    as_text,
    assert_same,
    data,
    make,
    play,
    take,
)
from tests.fakes import PlainNet, seeded

Copy = Callable[[Any], Any]
ACTIONS = [0.5, -0.3, 0.1, 0.9, -1.0, 0.2, 0.4, 0.6]
COPIES: dict[str, Copy] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda env: pickle.loads(pickle.dumps(env)),
    "cloudpickle": lambda env: pickle.loads(pickle.dumps(CloudpickleWrapper(env))).var,
}
each_copy = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


def everything(env: LayerwiseCompressionEnv) -> list[str]:
    """Return what the rest of an episode and the next one say, and where they begin."""
    here = as_text((env._get_obs(), env._get_info(), env.render()))
    rest = take(env, ACTIONS[env._t :])
    network = {name: x.tolist() for name, x in env.compressed_model().state_dict().items()}
    state = str(env.episode_state())
    samples = [str(space.sample()) for space in (env.action_space, env.observation_space)]
    return [here, *rest, str(network), state, *samples, as_text(env.reset()), *take(env, ACTIONS)]


def begun(n_done: int, kind: str = "magnitude", **options: Any) -> LayerwiseCompressionEnv:
    """Return an environment after some steps of an episode, all of it seeded."""
    env = make(kind, render_mode="ansi", **options)
    env.action_space.seed(5)
    env.observation_space.seed(5)
    env.reset(seed=2)
    take(env, ACTIONS[:n_done])
    return env


class TestPlace:
    @each_copy
    @pytest.mark.parametrize("kind", ["magnitude", "channel and batch norm", "bits"])
    @pytest.mark.parametrize(("noise", "n_done"), [(False, 1), (True, 0), (True, 2)])
    def test_a_copy_goes_on_as_the_original(
        self, copied: Copy, kind: str, noise: bool, n_done: int
    ) -> None:
        env = begun(n_done, kind, transition_noise=noise)
        twin = copied(env)
        gc.collect()
        assert everything(twin) == everything(env)

    @each_copy
    def test_neither_disturbs_the_other(self, copied: Copy) -> None:
        env, whole = (begun(2, transition_noise=True) for _ in range(2))
        twin = copied(env)
        everything(twin)
        assert everything(env) == everything(whole)

    @each_copy
    def test_an_episode_at_its_end_stays_there(self, copied: Copy) -> None:
        env = make("bits")
        env.reset()
        take(env, ACTIONS)
        twin = copied(env)
        assert_state = twin.compressed_model().state_dict()
        for name, tensor in env.compressed_model().state_dict().items():
            assert torch.equal(tensor, assert_state[name]), name
        with pytest.raises(gym.error.ResetNeeded):
            twin.step(np.zeros(1, np.float32))

    @each_copy
    def test_a_lent_network_is_copied_as_it_is(self, copied: Copy) -> None:
        env = begun(1)
        lent = env.live_model()
        next(lent.parameters()).data.mul_(0.5)
        twin = copied(env)
        changed = copied(twin)
        next(changed.live_model().parameters()).data.zero_()
        assert everything(twin) == everything(env)
        assert next(lent.parameters()).abs().sum() > 0

    def test_a_lent_quantized_network_is_copied_too(self) -> None:
        env = begun(1, "bits")
        env.live_model().conv1.bias.data.zero_()  # type: ignore[operator, union-attr]
        assert everything(copy.deepcopy(env)) == everything(env)

    def test_wrappers_are_copied_with_it(self) -> None:
        env = gym.make("compress_env/Pruning-v0", model=seeded(PlainNet), data=data(), device="cpu")
        env.reset(seed=0)
        env.step(np.array([0.3], np.float32))
        twin = copy.deepcopy(env)
        assert as_text(twin.step(np.zeros(1, np.float32))) == as_text(
            env.step(np.zeros(1, np.float32))
        )

    @each_copy
    def test_a_closed_one_is_closed(self, copied: Copy, tmp_path: Path) -> None:
        env = begun(2, store=tmp_path / "store")
        env.close()
        twin = copied(env)
        assert twin.store is None and not (tmp_path / "store-wal").exists()
        assert everything(twin) == everything(env)


class TestArguments:
    @each_copy
    @pytest.mark.parametrize("kind", ["channel", "bits and batch norm"])
    def test_a_copy_does_not_follow_the_callers_network(self, copied: Copy, kind: str) -> None:
        model = seeded(KINDS[kind][1])
        env = make(kind, model=model)
        expected = play(make(kind), ACTIONS)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        model.train()
        model.register_forward_hook(lambda module, args, out: 0.0 * out)
        twin = copied(env)
        assert_same(play(twin, ACTIONS), expected)
        assert_same(play(copied(twin), ACTIONS), expected)

    @pytest.mark.filterwarnings("ignore:information dropout has not told")
    @each_copy
    def test_nor_what_else_the_caller_may_change(self, copied: Copy) -> None:
        finetuning: dict[str, Any] = {"batch_size": 16, "batch_norm_batches": 2}
        elements: dict[str, Any] = {"n_steps": 1}
        model = seeded(PlainNet)
        options: dict[str, Any] = {"method": "channel+variational", "finetune_steps": 1}
        env = compress_env.PruningEnv(
            model, data(), finetune_config=finetuning, variational=elements, **options
        )
        finetuning["batch_size"], elements["n_steps"] = 3, 7
        twin = copied(env)
        assert twin.task.config == CONFIG and twin.variational.n_steps == 1
        assert_same(play(twin, ACTIONS), play(env, ACTIONS))

    @each_copy
    def test_nor_the_file_of_the_weights(self, copied: Copy, tmp_path: Path) -> None:
        bundle, file = data(), tmp_path / "weights.safetensors"
        build: Callable[[], nn.Module] = lambda: build_model("cnn4", 3, bundle.image_shape)  # noqa: E731
        save_checkpoint(seeded(build), file)
        env = compress_env.QuantizationEnv("cnn4", bundle, checkpoint=file, finetune_steps=0)
        expected = env.task.model.state_dict()
        file.unlink()
        for name, tensor in copied(env).task.model.state_dict().items():
            assert torch.equal(tensor, expected[name])

    def test_the_callers_network_is_let_go(self) -> None:
        model = seeded(PlainNet)
        env = make(model=model)
        assert all(argument is not model for argument in env._ezpickle_args)
