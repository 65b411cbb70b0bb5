"""What `render()` shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from tests.fakes import PlainNet, make_data, seeded


def make(kind: type[PruningEnv | QuantizationEnv], render_mode: str | None) -> Any:
    return kind(
        seeded(PlainNet), make_data(), finetune_steps=0, device="cpu", render_mode=render_mode
    )


@pytest.mark.parametrize("kind", [PruningEnv, QuantizationEnv])
def test_ansi_is_a_table_of_the_layers_decided_so_far(kind: Any) -> None:
    env = make(kind, "ansi")
    env.reset()
    assert len(env.render().splitlines()) == 1
    _, _, _, _, info = env.step(np.zeros(1, np.float32))
    heading, row = env.render().splitlines()
    assert heading.split() == ["layer", env.value_name, "accuracy", "cost", "%"]
    layer, value, accuracy, cost = row.split()
    assert layer == env.walk[0].name
    assert float(value) == pytest.approx(info[env.value_name], rel=1e-3)
    assert float(accuracy) == pytest.approx(info["accuracy"], abs=1e-4)
    expected = 100 * info["reward_terms"]["cost"] / env.unpruned.cost_high
    assert float(cost) == pytest.approx(expected, abs=0.01)


def test_ansi_shows_steps_that_were_not_scored() -> None:
    env = make(PruningEnv, "ansi")
    env.reward_at = "episode"
    env.reset()
    env.step(np.zeros(1, np.float32))
    assert env.render().splitlines()[1].split()[2] == "-"


def test_rgb_array_shows_a_bar_per_decided_layer() -> None:
    env = make(PruningEnv, "rgb_array")
    env.reset()
    n_blue = []
    for _ in range(3):
        picture = env.render()
        assert picture.shape == (400, 600, 3) and picture.dtype == np.uint8
        n_blue.append(int((picture[..., 2].astype(int) - picture[..., 0] > 100).sum()))
        env.step(np.zeros(1, np.float32))
    assert n_blue[0] == 0 < n_blue[1] < n_blue[2]


def test_render_without_a_mode_says_what_is_missing() -> None:
    env = make(PruningEnv, None)
    with pytest.warns(UserWarning, match="render_mode='ansi' or 'rgb_array'"):
        assert env.render() is None
