"""Who chooses: a learner whose rate follows its rollouts, and bits by the kind of a layer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tyro
from stable_baselines3.common.base_class import BaseAlgorithm

from agents import Random
from agents.common.paper import PAPER
from agents.rules import BIT_RULES, PRUNING_RULES
from experiments.compress import stages
from experiments.compress.choosers import make_agent
from experiments.compress.compress import Config, run
from experiments.search.entrants import CONTRIB, ENTRANTS
from tests.experiments.compress import jobs
from tests.fakes import quiet

pytestmark = pytest.mark.usefixtures("blank_figures")

SMALL: dict[str, Any] = jobs.SMALL | {"compare": (), "size": None, "evaluations": 3}


def rate_at_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> float:
    """Run a search and return the learning rate that its agent had at last."""
    made: list[Any] = []

    def watched(*args: Any) -> BaseAlgorithm | Random:
        agent = make_agent(*args)
        made.append(agent)
        return agent

    monkeypatch.setattr(stages, "make_agent", watched)
    run(Config(out=folder, **SMALL | settings), quiet())
    (agent,) = made
    return float(agent.policy.critic.optimizer.param_groups[0]["lr"])


def test_help_names_everyone_who_may_choose(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(Config, args=["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    (told,) = re.findall(r"Who chooses: (.*?)\(default", shown)
    agents, rules = told.split("around a rule (")
    for name in ENTRANTS:
        accepted = name in re.split(r"[,;] ", agents)
        assert accepted != (name in CONTRIB)
        if accepted:
            Config(algo=name).check()
    accepting = rules.partition(")")[0].split(", ")
    assert {"kl_curve", "relative_error"} < set(accepting)
    for rule in (*PRUNING_RULES, *BIT_RULES):
        assert rule in accepting
    for rule in accepting:
        Config(algo=f"ppo+{rule}").check()


def test_rate_of_a_learner_follows_its_rollouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"algo": "q_critic_ppo_paper", "agent_rate_drops": (2,), "agent_rate_decay": 0.9}
    last = rate_at_the_end(tmp_path / "run", monkeypatch, **settings)
    # The last update is within the third rollout, with whose end the search is over.
    assert last == pytest.approx(PAPER["learning_rate"] * 0.9**2 / 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"agent_rate_decay": 0.99, "algo": "cma_es"},
            "cma_es has no learning rate .*, q_critic_ppo_paper, ",
        ),
        ({"agent_rate_drops": (10,), "algo": None}, "portfolio|cma_es has no learning rate"),
        ({"agent_rate_drops": (0,)}, "agent_rate_drops must be ascending"),
        ({"agent_rate_decay": 2.0}, "agent_rate_decay must be in"),
    ],
)
def test_wrong_schedules_are_told_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Config(**SMALL | settings).check()
    assert "\n" not in str(caught.value)


def test_bits_may_follow_the_kind_of_a_layer(tmp_path: Path) -> None:
    settings = SMALL | {"algo": "uniform", "size": 0.03, "compare": ("8-5bit",)}
    rows = run(Config(out=tmp_path / "run", **settings), quiet())
    assert [row.network for row in rows] == ["baseline", "uniform-8-5bit", "uniform"]
    episodes = pd.read_csv(tmp_path / "run" / "episodes.csv").set_index("search")
    mine = episodes.loc[["uniform-8-5bit"]].filter(like="value:")
    bits = mine.loc["uniform-8-5bit"].dropna().rename(lambda name: name.removeprefix("value:"))
    assert bits.to_dict() == {"conv1": 8, "conv2": 8, "fc1": 5, "fc2": 5, "fc3": 5}
    assert rows[1].macs == rows[2].macs
