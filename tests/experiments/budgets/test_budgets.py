"""One policy for several budgets against others: what is run, and what the table says of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.budgets.budgets import Config, main, run
from experiments.budgets.report import KINDS, draw_budgets, format_budgets, read_budgets
from experiments.sweep.folder import SweepFolder
from experiments.trial import trials
from tests.experiments.benchmark.folders import text_of
from tests.fakes import NOISY, TINY, InProcessPool, quiet, tiny_tasks

SMALL = Config("q_critic_ppo+l1", NOISY[0], (0.4, 0.7), evaluations=12, seeds=(0, 1))
pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(autouse=True, scope="module")
def _tasks() -> Iterator[None]:
    with tiny_tasks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "LocalPool", InProcessPool)
        yield


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("budgets") / "out"
    assert run(replace(SMALL, seeds=(0,), out=out), quiet()) == []
    return out


def test_one_policy_has_as_many_evaluations_as_all_others() -> None:
    cells = [cell.config for cell in SMALL.cells()]
    made = [(c.algo, c.seed, c.evaluations, c.budgets, json.loads(c.env_kwargs)) for c in cells]
    budgets = [{"flops_budget": b} for b in SMALL.budgets]
    assert made[:2] == [("l1", 0, 6, (), b) for b in budgets]
    for seed, mine in ((0, made[2:5]), (1, made[5:])):
        assert mine[0] == (SMALL.algo, seed, 12, SMALL.budgets, {})
        assert mine[1:] == [(SMALL.algo, seed, 6, (), b) for b in budgets]
    assert len({cell.name for cell in SMALL.cells()}) == 8


def test_settings_are_the_learners() -> None:
    cells = replace(SMALL, settings='{"tau": 0.5}', shaping=0.2).cells()
    for cell in cells:
        is_rule = cell.config.algo == "l1"
        assert cell.config.shaping == (0.0 if is_rule else 0.2)
        assert is_rule or json.loads(cell.config.settings)["tau"] == 0.5
    (size,) = {key for c in replace(SMALL, task=NOISY[1], algo="ppo+uniform").cells()
               for key in json.loads(c.config.env_kwargs)}  # fmt: skip
    assert size == "size_budget"


def test_all_are_confirmed_and_compared(ran: Path) -> None:
    rows = read_budgets(SweepFolder(ran))
    found = rows.groupby("kind")["budget"].apply(sorted).to_dict()
    assert found == {kind: [0.4, 0.7] for kind in KINDS}
    assert rows["test"].between(0.0, 1.0).all()
    assert rows.loc[rows["kind"] == "rule", "final"].isna().all()
    assert rows.loc[rows["kind"] != "rule", "final"].between(0.0, 1.0).all()
    text = (ran / "budgets.md").read_text()
    assert "one policy has 12 evaluations for all budgets; a search each has 6 evaluations" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["40", "70", "mean"]
    assert (ran / "budgets.png").exists()


def test_goes_on_and_takes_other_seeds(ran: Path, tmp_path: Path) -> None:
    out, shown = tmp_path / "out", quiet()
    shutil.copytree(ran, out)
    assert run(replace(SMALL, seeds=(0,), out=out), shown) == []
    assert "5 of 5 cells were finished before" in text_of(shown)
    assert run(replace(SMALL, seeds=(0, 1), out=out), shown) == []
    assert set(read_budgets(SweepFolder(out))["seed"]) == {0, 1}
    with pytest.raises(ValueError, match="was made with evaluations=6, got 10"):
        run(replace(SMALL, evaluations=20, out=out), quiet())


def table_of(text: str) -> list[list[str]]:
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_the_table_by_hand() -> None:
    rows = pd.DataFrame(
        [
            *(("one", 0.2, seed, 40, 0.9 + 0.02 * seed, 0.85) for seed in range(2)),
            *(("one", 0.5, seed, 40, 0.96, 0.95) for seed in range(2)),
            *(("each", 0.2, seed, 20, 0.91, 0.8) for seed in range(2)),
            ("each", 0.5, 0, 20, 0.95, float("nan")),
            ("rule", 0.2, 0, 20, 0.89, float("nan")),
        ],
        columns=["kind", "budget", "seed", "evaluations", "test", "final"],
    )
    first, second, mean = table_of(format_budgets(rows))
    assert first == ["20", "2", "91.00 ± 12.71", "91.00 ± 0.00", "89.00", "+0.00 ± 12.71",
                     "+2.00 ± 12.71", "85.00 ± 0.00", "80.00 ± 0.00"]  # fmt: skip
    assert second == ["50", "2", "96.00 ± 0.00", "95.00", "-", "+1.00", "-", "95.00 ± 0.00", "-"]
    assert mean[:4] == ["mean", "2", "93.50 ± 6.35", "93.00"] and mean[5] == "+0.00"
    lines = {str(line.get_label()): line for line in draw_budgets(rows).axes[0].containers}
    assert set(lines) == {"one policy", "a search each", "the rule alone"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": (0.4, 0.4)}, "expected budgets that differ"),
        ({"seeds": ()}, "expected seeds that differ"),
        ({"evaluations": 1}, "expected an evaluation for each of 2 budgets, got 1 in all"),
        ({"algo": "q_critic_ppo"}, "algo must be a learner around a rule"),
        ({"algo": "cma_es+l1"}, r"algo must be a learner around a rule.* got cma_es\+l1"),
        ({"task": TINY[0]}, "task must be one with a budget that draws the order"),
        ({"task": "NoisyPrun-v0"}, "unknown task 'NoisyPrun-v0', did you mean 'NoisyPrune-v0'"),
        ({"algo": "ppo+relative_error"}, "relative_error chooses bits"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_told_in_a_line(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(replace(SMALL, out=tmp_path / "out", **changes), quiet())
    assert not (tmp_path / "out").exists()


def test_the_command_ends_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["budgets", "--algo", "random"])
    with pytest.raises(SystemExit, match=r"^error: algo must be a learner around a rule"):
        main()
