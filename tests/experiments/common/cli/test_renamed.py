"""Settings that had another name before."""

import pytest

from experiments.common.cli.renamed import RENAMED, current_names

VALID = ("algo", "task", "seed", "evaluations")


def test_an_old_name_becomes_the_present_one_and_others_stay() -> None:
    stored = {"agent": "ppo", "seed": 3, "n_evaluations": None, "command": "x"}
    assert current_names(stored, VALID) == {
        "algo": "ppo",
        "seed": 3,
        "evaluations": None,
        "command": "x",
    }


def test_a_name_that_is_valid_still_is_left_alone() -> None:
    assert current_names({"agent": "ppo"}, ("agent", "algo")) == {"agent": "ppo"}


@pytest.mark.parametrize("settings", [{"agent": "a", "algo": "b"}, {"tasks": 1, "task": 2}])
def test_a_present_name_wins_over_an_old_one(settings: dict[str, object]) -> None:
    assert current_names(settings, VALID) == settings


def test_a_name_whose_present_one_is_of_no_setting_here_is_left_alone() -> None:
    assert current_names({"n_episodes": 3}, VALID) == {"n_episodes": 3}


def test_present_names_are_not_renamed_again() -> None:
    assert not RENAMED.keys() & set(RENAMED.values())
