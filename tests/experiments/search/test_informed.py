"""Agents around a rule, `AGENT+RULE`: their names, what they are shown, and how they begin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import Rule
from compress_env.envs.wrappers.context import LayerContext
from experiments.search.algorithms import Around, make_agent
from experiments.search.entrants import (
    CONTRIB,
    IMPROVEMENTS,
    INFORMABLE,
    agent_of,
    can_act,
    check_agent,
    check_algorithm,
    check_stage,
    env_options,
    goes_on,
    rule_of,
    stages_of,
    with_rule,
)
from experiments.search.episodes import EpisodeLog, run_learner, run_policy
from experiments.search.observing import wrap
from experiments.search.playing import play
from experiments.search.resuming import ResumableSearch
from experiments.trial.trial import Config, make_task, run
from tests.fakes import TINY, quiet, tiny_tasks


@pytest.fixture(scope="module", autouse=True)
def _tiny_tasks() -> Iterator[None]:
    with tiny_tasks():
        yield


class SmallPPO(PPO):
    def __init__(self, policy: str, env: Any, seed: int) -> None:
        super().__init__(policy, env, n_steps=8, batch_size=8, seed=seed, device="cpu")


def searched(name: str, n_episodes: int, task: str = TINY[0]) -> tuple[EpisodeLog, Any]:
    env = make_task(Config(name, task))
    observed = wrap(name, env)
    log = EpisodeLog(DummyVecEnv([lambda: observed]))
    n_steps = n_episodes * len(env.walk)
    agent = make_agent(name, env, log, n_steps=n_steps, seed=0, settings={})
    learn: Any = run_policy if agent_of(name) == "random" else run_learner
    learn(agent, log, n_episodes=n_episodes)
    return log, agent


def test_names_are_of_an_agent_and_a_rule() -> None:
    assert (agent_of("ppo+l1"), rule_of("ppo+l1")) == ("ppo", "l1")
    assert (agent_of("ppo"), rule_of("ppo")) == ("ppo", None)
    assert env_options("ppo+l1") == {"prior": "l1"} and env_options("ppo") == {}
    assert env_options("ppo+l1", "quantization") == {"prior": "relative_error"}
    assert env_options("ppo+relative_error", "pruning") == {"prior": "uniform"}
    given = {"prior": "l1", "seed": 3}
    assert with_rule("ppo+l1", given) == with_rule("ppo", given) == given
    assert with_rule("ppo+l1", {"seed": 3}) == given
    for other in ("l2", [0.5]):
        with pytest.raises(ValueError, match=r"^ppo\+l1 asks for the prior 'l1', env_kwargs for"):
            with_rule("ppo+l1", {"prior": other})
    assert stages_of("ppo+l1") == stages_of("afie") == ("pruning",)
    assert stages_of("ppo+relative_error") == ("quantization",)
    assert stages_of("ppo+uniform") == stages_of("my:Agent") == ("pruning", "quantization")
    assert goes_on("ppo+l1") and not goes_on("my:Agent+l1")
    for name in INFORMABLE:
        check_agent(f"{name}+l1")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pppo+l1", "unknown algorithm 'pppo', did you mean 'ppo'"),
        ("ppo+fischer", "unknown rule 'fischer', did you mean 'fisher'.* relative_error"),
        ("ppo+", "unknown rule ''; valid: uniform, l1"),
        ("greedy+l1", "greedy does not search, so it takes no rule, got 'greedy.l1'"),
    ],
)
def test_wrong_names_are_told_in_one_line(name: str, message: str) -> None:
    for check in (check_agent, check_algorithm):
        with pytest.raises(ValueError, match=message) as caught:
            check(name)
        assert "\n" not in str(caught.value)


def test_where_no_rule_is_applied_none_is_taken() -> None:
    check_algorithm("ppo", takes_rule=False)
    with pytest.raises(ValueError, match=r"unknown algorithm 'ppo\+l1', did"):
        check_algorithm("ppo+l1", takes_rule=False)


def test_rule_of_the_other_stage_is_told_in_one_line() -> None:
    assert can_act("ppo+l1", TINY[0]) and not can_act("ppo+l1", TINY[1])
    assert can_act("ppo+l1", "CartPole-v1") and can_act("ppo", TINY[1])
    message = (
        "relative_error chooses bits, compress_env/TinyPrune-v0 asks for pruning rates; valid "
        "here: tpe.uniform, tpe.l1"
    )
    with pytest.raises(ValueError, match=message) as caught:
        Config("tpe+relative_error", TINY[0]).check()
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"l1 chooses pruning rates, .* asks for bits"):
        check_stage("ppo+l1", TINY[1])


@pytest.mark.parametrize("name", ["ppo", "q_critic_ppo", "sac"])
def test_learners_are_shown_the_context_and_others_are_not(name: str) -> None:
    env = make_task(Config(f"{name}+l1", TINY[0]))
    assert env.prior == "l1"
    assert isinstance(wrap(f"{name}+l1", env), LayerContext)
    assert wrap(name, env) is env
    for blind in ("cma_es+l1", "tpe+l1", "random+l1"):
        assert wrap(blind, env) is env


def test_anybodys_agent_is_shown_the_context_too() -> None:
    env = make_task(Config(task=TINY[0]))
    assert isinstance(wrap("my:Agent+l1", env), LayerContext)
    assert wrap("my:Agent", env) is env


@pytest.mark.parametrize("name", ["cma_es", "tpe"])
def test_searches_begin_with_the_rule_itself(name: str) -> None:
    log, _ = searched(f"{name}+l1", 6)
    first, *others = log.episodes
    env = make_task(Config(task=TINY[0]))
    assert first.values == play(env, Rule(env, "l1")).values
    spread = np.std([episode.actions for episode in others])
    assert 0.0 < spread < 0.45  # uniform actions have 0.58


def test_random_search_is_drawn_around_the_rule() -> None:
    log, agent = searched("random+relative_error", 12, TINY[1])
    assert agent.spread == 0.1
    assert 0.05 < np.std([episode.actions for episode in log.episodes]) < 0.15


OFF_POLICY = ("sac", "td3", "ddpg", "tqc", "crossq")


@pytest.mark.parametrize(
    "name", [*OFF_POLICY, "ppo", "a2c", "q_critic_ppo", *IMPROVEMENTS, "trpo", "ars"]
)
def test_learners_begin_around_the_rule(name: str) -> None:
    if name in CONTRIB:
        pytest.importorskip("sb3_contrib")
    log, agent = searched(f"{name}+l1", 12)
    first = np.concatenate([episode.actions for episode in log.episodes[:2]])
    assert 0.0 < np.sqrt(np.mean(first**2)) < 0.25  # uniform actions have 0.58
    if name in OFF_POLICY:
        blind = searched(name, 3)[1]
        assert agent.action_space == blind.action_space == log.action_space
        assert type(blind.action_space) is spaces.Box


def test_first_actions_around_a_rule_are_normal_and_inside_the_box() -> None:
    around = Around(
        spaces.Box(
            np.array([0.0, -2.0], np.float32), np.array([1.0, 2.0], np.float32), dtype=np.float32
        ),
        0.5,
    )
    around.seed(0)
    drawn = np.array([around.sample() for _ in range(2000)])
    assert drawn.dtype == np.float32 and all(around.contains(action) for action in drawn)
    np.testing.assert_allclose(drawn.mean(0), [0.5, 0.0], atol=0.05)
    np.testing.assert_allclose(drawn.std(0), [0.24, 0.95], atol=0.03)  # 0.25 and 1, clipped


def test_agents_that_look_at_the_nine_work_as_before() -> None:
    env = make_task(Config("ppo+l1", TINY[0]))
    rule = Rule(env, "fisher")
    assert play(LayerContext(env), rule).values == play(env, rule).values


@pytest.mark.parametrize(
    ("name", "task"),
    [("q_critic_ppo+fisher", TINY[0]), ("ppo+relative_error", TINY[1]), ("td3+l1", TINY[0])],
)
def test_trial_of_an_informed_agent_plays_its_policy(name: str, task: str, tmp_path: Path) -> None:
    row = run(Config(name, task, evaluations=6, out=tmp_path / "out"), quiet())
    assert row["n_evaluations"] >= 6 or row["n_episodes"] == 18
    assert 0.0 <= row["final_accuracy"] <= 1.0
    agent = run(
        Config(f"{__name__}:SmallPPO+uniform", task, evaluations=3, out=tmp_path / "own"), quiet()
    )
    assert agent["n_episodes"] >= 3


def test_stopped_trial_of_an_informed_agent_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = (
        Config("q_critic_ppo+l1", TINY[0], evaluations=8, out=tmp_path / name) for name in "ab"
    )
    monkeypatch.setattr("experiments.search.resuming.SAVING_SHARE", 1e9)
    run(whole, quiet())

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ResumableSearch, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(stopped, quiet())
    run(Config(resume=tmp_path / "b"), quiet())
    left, right = (pd.read_csv(tmp_path / name / "episodes.csv") for name in "ab")
    pd.testing.assert_frame_equal(left.drop(columns="seconds"), right.drop(columns="seconds"))
