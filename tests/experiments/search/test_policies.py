"""Policies applied again, and the archive that they come from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from compress_env.pruning.elements import PRESETS, VariationalConfig
from experiments.common.drawing.figures import non_dominated
from experiments.compress.compress import Config, run
from tests.experiments.compress import jobs

pytestmark = [
    pytest.mark.usefixtures("blank_figures"),
    pytest.mark.filterwarnings("ignore:information dropout has not told"),
]

SMALL: dict[str, Any] = jobs.SMALL | {
    "method": "channel+variational",
    "evaluations": 4,
    "finetune_steps": 1,
    "final_finetune_steps": 4,
}


@pytest.fixture(scope="module", autouse=True)
def few_steps() -> Iterator[None]:
    """Of information dropout, which is not what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "default", VariationalConfig(n_steps=10))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "finished"
    run(Config(out=folder, **SMALL | {"compare": ()}), Console(file=StringIO()))
    return folder


def apply(policy: Path, out: Path, **settings: Any) -> str:
    text = StringIO()
    run(Config(policy=policy, out=out, **SMALL | settings), Console(file=text, width=120))
    return text.getvalue()


def test_policy_of_a_run_gives_the_same_network(finished: Path, tmp_path: Path) -> None:
    text = apply(finished / "policy.json", tmp_path / "again")
    first, second = finished / "network-q_critic_ppo.cenv", tmp_path / "again"
    assert first.read_bytes() == (second / "network-policy.cenv").read_bytes()
    assert "policy" in text and "uniform" not in text


def test_front_is_of_the_episodes_and_can_be_applied(finished: Path, tmp_path: Path) -> None:
    front = pd.read_csv(finished / "pareto.csv")
    episodes = pd.read_csv(finished / "episodes.csv")
    pruning = episodes[episodes["stage"] == "pruning"]
    for _, row in front.iterrows():
        better = pruning[
            (pruning["dense_macs"] <= row["dense_macs"])
            & (pruning["sparse_params"] <= row["sparse_params"])
            & (pruning["accuracy"] > row["accuracy"])
        ]
        assert better.empty
        assert (pruning["actions"] == row["actions"]).any()
    assert (finished / "pareto.png").read_bytes().startswith(b"\x89PNG")
    last = front.iloc[-1]
    apply(finished / last["policy"], tmp_path / "again", evaluations=1)
    again = pd.read_csv(tmp_path / "again" / "episodes.csv").iloc[0]
    for column in ("accuracy", "dense_macs", "sparse_macs", "dense_params", "sparse_params"):
        assert again[column] == last[column]


def test_policy_under_other_settings_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found under other settings: of conv2 it made"):
        apply(finished / "policy.json", tmp_path / "again", macs=0.5, size=0.03)


def stage(layers: str, rates: str, actions: str) -> str:
    entry = f'{{"layers": {layers}, "pruning_rate": {rates}, "actions": {actions}}}'
    return f'{{"a": {{"pruning": {entry}}}}}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "cannot use the policy"),
        ("[1]", "cannot use the policy"),
        ('{"a": {}, "b": {}}', "holds a, b, not q_critic_ppo; choose with --algo"),
        ('{"a": {"pruning": {"layers": []}}}', "no 'pruning_rate'"),
        ('{"a": {"magic": {}}}', "unknown stage 'magic'; valid: pruning, quantization"),
        ('{"a": {"pruning": 3}}', "pruning must hold layers, pruning_rate and actions"),
        ('{"a": 3}', "expected decisions by stage"),
        ('{"a": {}}', "expected decisions by stage"),
        (stage("[3]", "[0.5]", "[0]"), "layers of pruning must be a text, got 3"),
        (stage('["a"]', "0.5", "[0]"), "pruning_rate of pruning must be a list of"),
        (stage('["a"]', "[0.5]", '["x"]'), "actions of pruning must be a finite number, got 'x'"),
        (stage('["a"]', "[0.5]", "[NaN]"), "actions of pruning must be a finite number, got nan"),
        (stage('["a"]', "[0.5]", "[1.5]"), r"actions of pruning must be in \[-1, 1\]"),
        (stage('["a"]', "[0.5]", "[0, 0]"), "as many layers, pruning_rate, actions, at least one"),
        (stage("[]", "[]", "[]"), "as many layers, pruning_rate, actions, at least one"),
        ('{"a": ' * 100_000, "nested too deep"),
    ],
    ids=lambda value: value[:30],
)
def test_file_that_is_no_policy_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        apply(path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["policy.json"]


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=25))
def test_front_against_the_definition(points: list[tuple[int, int, int]]) -> None:
    costs, accuracies = [p[:2] for p in points], [p[2] for p in points]
    front = set(non_dominated(costs, accuracies).tolist())

    def beats(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
        return a != b and a[0] <= b[0] and a[1] <= b[1] and a[2] >= b[2]

    for i, point in enumerate(points):
        beaten = any(beats(other, point) for other in points)
        assert (i in front) == (not beaten and points.index(point) == i)
    firsts = np.array([points[i][0] for i in non_dominated(costs, accuracies)])
    assert (np.diff(firsts) >= 0).all()


def test_policy_file_says_what_it_is(finished: Path) -> None:
    policy = json.loads((finished / "pareto" / "policy-000.json").read_text())
    ((_, stages),) = policy.items()
    assert set(stages["pruning"]) >= {"layers", "pruning_rate", "actions", "validation_accuracy"}
