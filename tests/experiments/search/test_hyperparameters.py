"""Hyper-parameters: which there are, what they do to the agents, and what may replace them."""

from __future__ import annotations

from typing import Any

import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import QCriticPPO
from experiments.search.algorithms import make_learner
from experiments.search.entrants import CONTRIB, ENTRANTS, IMPROVEMENTS, LEARNERS
from experiments.search.episodes import EpisodeLog, run_learner
from experiments.search.hyperparameters import (
    HYPERPARAMETERS,
    INFORMED,
    check_settings,
    stored_settings,
)
from experiments.tune.spaces import INFORMED_SPACES, SPACES, Choice, Range, Space, contains
from tests.experiments.common.test_parts import make_env, make_log
from tests.fakes import slow

PUBLISHED = {"cma_es", "tpe", *IMPROVEMENTS}
FAMILIES = {name: each.family for name, each in ENTRANTS.items() if each.family is not None}


def build(name: str, log: EpisodeLog, length: int, settings: dict[str, Any]) -> Any:
    if name in CONTRIB:
        pytest.importorskip("sb3_contrib")
    return make_learner(name, log, n_steps=length, seed=0, settings=settings)


def test_settings_of_the_policy_reach_it() -> None:
    settings = {"n_critics": 3, "log_std_init": -2.0, "policy_delay": 4}
    agent = make_learner("q_critic_ppo+l1", make_log(), n_steps=8, seed=0, settings=settings)
    assert isinstance(agent, QCriticPPO)
    assert agent.policy.n_critics == 3 and agent.policy_delay == 4
    assert agent.policy.actor.log_std.item() == pytest.approx(-2.0)


def corner(family: str, end: int) -> dict[str, Any]:
    """Return a corner of a space: the first or the last of everything."""
    return {
        name: part.values[end] if isinstance(part, Choice) else part[:2][end]
        for name, part in SPACES[family].items()
    }


def test_file_and_spaces_name_the_same_and_what_is_stored_is_inside() -> None:
    assert list(HYPERPARAMETERS) == list(SPACES)
    for agent, space in SPACES.items():
        assert contains(space, HYPERPARAMETERS[agent]), agent
        assert space.keys() == HYPERPARAMETERS[agent].keys()
    for agent, space in INFORMED_SPACES.items():
        assert contains(space, stored_settings(f"{agent}+uniform")), agent


def test_every_learner_has_settings_but_those_with_published_defaults() -> None:
    assert FAMILIES.keys() == {*LEARNERS, *CONTRIB} - PUBLISHED
    assert set(FAMILIES.values()) == HYPERPARAMETERS.keys()
    assert stored_settings("cma_es") == stored_settings("uniform") == {}


def test_informed_agents_have_settings_of_their_own() -> None:
    for key, settings in INFORMED.items():
        assert key in {*HYPERPARAMETERS, *PUBLISHED, "random"} and settings
    assert stored_settings("cma_es+l1") == INFORMED["cma_es"]
    assert stored_settings("ppo+l1") == stored_settings("ppo") | INFORMED.get("ppo", {})
    assert stored_settings("my:Agent+l1") == stored_settings("uniform") == {}
    check_settings("random+l1", {"spread": 0.1})
    with pytest.raises(ValueError, match="unknown setting 'spread' of random; valid: none"):
        check_settings("random", {"spread": 0.1})


def test_settings_of_one_agent_alone_are_its_own_to_replace() -> None:
    assert stored_settings("cim_ppo") == stored_settings("ppo") | {"kl_target": 0.01}
    log = make_log(reward_at="episode")
    assert build("cim_ppo", log, 30, {}).kl_target == 0.01
    assert build("cim_ppo", log, 30, {"kl_target": 0.5}).kl_target == 0.5
    with pytest.raises(ValueError, match="ent_coef of sac must be 'auto', 'auto_X'"):
        build("sac", log, 30, {"ent_coef": "auto_0"})
    with pytest.raises(ValueError, match="unknown setting 'kl_target' of ppo"):
        check_settings("ppo", {"kl_target": 0.5})


def test_each_improvement_of_the_papers_agent_is_switched_off_alone() -> None:
    whole, v_critic, *others = (build(name, make_log(), 30, {}) for name in IMPROVEMENTS)
    names = ("advantage", "prior_policy", "target_steps", "tau", "target_policy_noise")
    expected = ("q", "behavior", 1, 0.01, 0.2)
    assert tuple(getattr(whole, name) for name in names) == expected
    assert type(v_critic) is PPO and v_critic.learning_rate == whole.learning_rate == 1e-3
    hidden = v_critic.policy.mlp_extractor.policy_net, v_critic.policy.mlp_extractor.value_net
    for mine, its in zip(hidden, (whole.policy.actor.net, whole.policy.critic.qf0), strict=True):
        assert [repr(layer).split("(")[0] for layer in mine] == ["Linear", "ReLU"]
        assert mine[0].out_features == its[0].out_features == 64 and len(its) == 3
    assert v_critic.policy.log_std.exp().item() == pytest.approx(whole.policy.action_std().item())
    assert v_critic.normalize_advantage is whole.normalize_advantage is False
    changed = [
        {n for n in (*names, "clip") if _value(agent, n) != _value(whole, n)} for agent in others
    ]
    assert changed == [{"clip"}, {"tau"}, {"target_policy_noise"}]
    assert build("q_critic_ppo_paper", make_log(), 30, {"tau": 0.5}).tau == 0.5
    around = build("q_critic_ppo_paper_v+l1", make_log(), 30, {}).policy
    assert around.net_arch == [64] and around.log_std.item() == pytest.approx(-2.3)


def _value(agent: Any, name: str) -> Any:
    return agent.clip_range(1.0) if name == "clip" else getattr(agent, name)


def test_settings_mean_the_same_over_several_environments() -> None:
    """Steps between updates are counted over all, and updates by the transitions."""
    log = EpisodeLog(DummyVecEnv([make_env, make_env]))
    ppo = build("ppo", log, 850, {"n_updates": 10, "n_steps_max": 64})
    assert (ppo.n_steps, ppo.batch_size, ppo.n_envs) == (32, 32, 2)
    assert build("ddpg", log, 850, {"gradient_steps": 3}).gradient_steps == 6


def test_space_contains_no_other_names_and_nothing_outside() -> None:
    space: Space = {"a": Range(0.5, 2.0, log=True), "b": Choice((1, 2))}
    assert contains(space, {"a": 2.0, "b": 1})
    assert not contains(space, {"a": 2.1, "b": 1})
    assert not contains(space, {"a": 2.0, "b": 3})
    assert not contains(space, {"a": 2.0})


@pytest.mark.parametrize("end", [-1, *slow(0)], ids=["last", "first"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_learner_takes_what_the_search_may_find(name: str, end: int) -> None:
    found = corner(FAMILIES[name], end) | dict(ENTRANTS[name].own)
    settings = {key: found[key] for key in stored_settings(name)}
    log = make_log(reward_at="episode")
    agent = build(name, log, 30, settings)
    if name not in CONTRIB:
        run_learner(agent, log, 10)
        assert len(log.episodes) == 10
    if "learning_rate" in settings:
        assert agent.learning_rate == settings["learning_rate"]


SHAPED: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    # Environment steps of the search, then what must come of stored settings that are given here.
    "ppo": (850, {"n_updates": 10, "n_steps_max": 64}, {"n_steps": 64, "batch_size": 32}),
    "kl_ppo": (850, {"n_updates": 10, "n_steps_max": 256}, {"n_steps": 84, "batch_size": 42}),
    "cim_ppo": (850, {"n_updates": 40, "n_steps_max": 256}, {"n_steps": 20, "batch_size": 10}),
    "a2c": (850, {"n_steps": 20, "gae_lambda": 0.9}, {"n_steps": 20, "gae_lambda": 0.9}),
    "ddpg": (
        850,
        {"learning_starts_fraction": 0.1, "learning_starts_max": 400},
        {"learning_starts": 85},
    ),
    "td3": (
        850,
        {"learning_starts_fraction": 0.3, "learning_starts_max": 100, "tau": 0.02},
        {"learning_starts": 100, "tau": 0.02, "buffer_size": 850},
    ),
    "sac": (
        850,
        {"ent_coef": "auto_0.1", "gradient_steps": 2},
        {"ent_coef": "auto_0.1", "gradient_steps": 2},
    ),
    "q_critic_ppo": (
        850,
        {"target_steps": 7, "actor_learning_rate": 0.02},
        {
            "target_steps": 7,
            "actor_learning_rate": 0.02,
            "batch_size": HYPERPARAMETERS["q_critic_ppo"]["batch_size"],
        },
    ),
}


@pytest.mark.parametrize("name", SHAPED)
def test_settings_become_arguments(name: str) -> None:
    n_steps, settings, expected = SHAPED[name]
    agent = build(name, make_log(), n_steps, settings)
    assert {key: getattr(agent, key) for key in expected} == expected


@pytest.mark.parametrize("name", ["q_critic_ppo", "ppo", "kl_ppo", "a2c"])
def test_first_standard_deviation_is_set(name: str) -> None:
    agent: BaseAlgorithm = build(name, make_log(), 100, {"log_std_init": -1.25})
    parameters = agent.get_parameters()["policy"]
    stored = [value for key, value in parameters.items() if key.endswith("log_std")]
    assert stored and all(value.eq(-1.25).all() for value in stored)


def test_noise_on_actions_is_set() -> None:
    agent = build("ddpg", make_log(), 100, {"action_noise": 0.6})
    assert agent.action_noise._sigma.tolist() == [0.6]


@pytest.mark.parametrize("name", [n for n in ENTRANTS if stored_settings(n)])
def test_what_is_stored_is_in_range(name: str) -> None:
    check_settings(name, stored_settings(name))
    around = f"{name}+uniform"
    check_settings(around, stored_settings(around))


@pytest.mark.parametrize(
    ("agent", "settings", "message"),
    [
        ("ppo", {"clip": 0.2}, "unknown setting 'clip' of ppo; valid: learning_rate, n_updates, "),
        ("trpo", {"n_epochs": 5}, "unknown setting 'n_epochs' of trpo; valid: learning_rate"),
        ("crossq", {"tau": 0.1}, "unknown setting 'tau' of crossq; valid: gradient_steps"),
        ("cma_es", {"sigma0": 1.0}, "unknown setting 'sigma0' of cma_es; valid: none"),
        ("my:Agent", {"x": 1.0}, "unknown setting 'x' of my:Agent; valid: none"),
        ("ppo", {"n_updates": 0}, "n_updates of ppo must be 1 or more, got 0"),
        ("ppo", {"n_epochs": 2.5}, "n_epochs of ppo must be a whole number, got 2.5"),
        ("td3", {"tau": "0.1"}, "tau of td3 must be a finite number, got '0.1'"),
        ("td3", {"tau": float("nan")}, "tau of td3 must be a finite number, got nan"),
        ("sac", {"ent_coef": 0.1}, "ent_coef of sac must be a text, got 0.1"),
        ("sac", {"ent_coef": "high"}, "ent_coef of sac must be 'auto', 'auto_X' .*, got 'high'"),
        ("sac", {"ent_coef": "auto_-1"}, "ent_coef of sac must be 'auto', .*, got 'auto_-1'"),
        ("sac+l1", {"spread": -0.1}, r"spread of sac\+l1 must be above 0 and finite, got -0.1"),
        ("tqc+l1", {"spread": 0.0}, r"spread of tqc\+l1 must be above 0"),
        ("crossq+l1", {"spread": -1.0}, r"spread of crossq\+l1 must be above 0"),
        ("td3+l1", {"spread": -0.1}, r"spread of td3\+l1 must be at least 0 and finite, got -0.1"),
        ("ddpg+l1", {"spread": -0.1}, r"spread of ddpg\+l1 must be at least 0"),
        ("random+l1", {"spread": -0.1}, r"spread of random\+l1 must be at least 0"),
        ("tpe+l1", {"spread": -0.1}, r"spread of tpe\+l1 must be at least 0"),
        ("cma_es+l1", {"sigma0": 0.0}, r"sigma0 of cma_es\+l1 must be above 0 and finite, got 0"),
        ("ddpg", {"action_noise": -0.1}, "action_noise of ddpg must be at least 0 and finite"),
        ("ppo", {"log_std_init": 1000.0}, r"log_std_init of ppo must be in \[-20, 2\], got 1000"),
        ("q_critic_ppo+l1", {"imitation_coef": -1.0}, r"imitation_coef of .*\+l1 must be at least"),
        ("a2c", {"gae_lambda": 1.5}, r"gae_lambda of a2c must be in \[0, 1\], got 1.5"),
        ("ars", {"delta_std": 0.0}, "delta_std of ars must be above 0 and finite, got 0.0"),
    ],
)
def test_what_an_agent_does_not_have_is_refused(
    agent: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_settings(agent, settings)
