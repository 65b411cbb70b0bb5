"""Trials of agents of anybody's: what they may be, and when their code is run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from experiments.search.resuming import ResumableSearch
from experiments.trial import trial
from experiments.trial.trial import Config, run
from tests.experiments.trial.foreign import FOREIGN
from tests.experiments.trial.runs import interrupt, small
from tests.fakes import quiet


@pytest.mark.parametrize("name", ["Midway", "Stepper", "Stubborn", "SmallPPO", "INSTANCE"])
def test_anybodys_agent_searches(name: str, tmp_path: Path) -> None:
    agent = f"{FOREIGN}:{name}"
    row = run(small(tmp_path / "out", algo=agent, episodes=5), quiet())
    if name in ("Midway", "INSTANCE"):  # the same network each time
        assert (row["n_episodes"], row["n_evaluations"]) == (5, 1)
        assert row["actions"] == row["final_actions"] == "0 0 0"
    else:
        assert row["n_evaluations"] == 4 or row["n_episodes"] == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Failing", r"Failing' failed: KeyError: 'x' \(.*foreign.py, line \d+\)"),
        ("WrongShape", r"WrongShape' failed: ValueError: action must have shape \(1,\), got \(\)"),
    ],
)
def test_what_goes_wrong_in_anybodys_agent_is_told_in_one_line(
    name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match=message):
        run(small(tmp_path / "out", algo=f"{FOREIGN}:{name}"), quiet())


def test_code_of_an_agent_is_run_only_if_it_is_named_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "trial_entrant.py"
    source.write_text("from tests.experiments.trial.foreign import Stepper as Mine\n")
    monkeypatch.chdir(tmp_path)
    killed = small(tmp_path / "killed", algo="trial_entrant:Mine")
    with monkeypatch.context() as patch:
        patch.setattr(ResumableSearch, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(killed, quiet())
    del sys.modules["trial_entrant"]
    monkeypatch.setattr("sys.argv", ["trial", "--resume", str(tmp_path / "killed")])
    with pytest.raises(SystemExit, match="error: the code of 'trial_entrant:Mine' is run only if"):
        trial.main()
    assert "trial_entrant" not in sys.modules
    source.write_text(source.read_text() + "# other code\n")
    again = Config(resume=tmp_path / "killed", algo="trial_entrant:Mine")
    with pytest.raises(ValueError, match="the agent here is not what"):
        run(again, quiet())
    source.write_text("from tests.experiments.trial.foreign import Stepper as Mine\n")
    assert run(again, quiet())["n_evaluations"] == 4
