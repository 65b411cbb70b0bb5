"""Episodes: what is noted of each, and what becomes of it in a file."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from compress_env.envs.pruning import PruningEnv
from compress_env.pruning.elements import VariationalConfig
from experiments.search.playing import Episode, play_actions, read_values
from tests.fakes import EPISODE, PlainNet, make_data, seeded


@pytest.mark.filterwarnings("ignore:information dropout has not told")
def test_an_episode_says_whether_outputs_were_told_apart() -> None:
    env = PruningEnv(
        seeded(PlainNet),
        make_data(),
        method="variational",
        variational=VariationalConfig(n_steps=5),
        finetune_steps=0,
    )
    episode = play_actions(env, (0.5, -1.0, 0.5))
    first, whole, last = episode.information_std
    assert first is not None and last is not None and first > 0.0 and whole is None
    row = episode.row()
    assert row["information_std:conv2"] == first
    assert Episode.from_state(asdict(episode)) == episode


def test_episodes_without_information_have_no_columns_of_it() -> None:
    assert not any(name.startswith("information_std") for name in EPISODE.row())
    earlier = asdict(EPISODE)
    del earlier["information_std"]
    assert Episode.from_state(earlier) == EPISODE


def test_values_are_read_by_layer() -> None:
    assert read_values('{"conv": 0.5, "head": 8}') == {"conv": 0.5, "head": 8.0}


@pytest.mark.parametrize("text", ["", "[0.5]", '{"conv": "x"}', '{"conv": 1e999}', "[" * 9999])
def test_other_texts_are_no_values(text: str) -> None:
    with pytest.raises(ValueError, match="values by layer") as caught:
        read_values(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
