"""A command line becomes settings, or one line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import tyro
from rich.console import Console

from experiments.common.cli.command import ending_in_one_line, one_line, resume_hint
from experiments.common.cli.parsing import UsageError, as_called, parse_command
from experiments.common.cli.say import say
from experiments.compress import compress


@dataclass(frozen=True)
class Settings:
    """Settings of nothing."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    method: Literal["magnitude", "channel"] = "channel"
    parts: tuple[Literal["step", "store"], ...] = ("step",)
    algo: str = "ppo"
    episodes: int = 5
    seed: int = 0
    replay_seeds: tuple[int, ...] = ()
    n_envs: int | None = None
    onnx: bool = True
    resume: Path | None = None


@dataclass(frozen=True)
class Needy:
    """Settings of which one must be given."""

    out: Path


def test_settings_are_read_however_they_are_written() -> None:
    line = ["--n_envs=2", "--no-onnx", "--parts", "store", "step", "--algo=--x"]
    expected = Settings(n_envs=2, onnx=False, parts=("store", "step"), algo="--x")
    assert parse_command(Settings, line) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--n-episodes 5", "--n-episodes is called --episodes now"),
        ("--agent=ppo", "--agent is called --algo now"),
        ("--epsodes 5", "there is no option --epsodes, did you mean '--episodes'?"),
        ("--no-onx", "there is no option --no-onx, did you mean '--no-onnx'?"),
        ("--zzz", "there is no option --zzz; --help lists them"),
        ("--runs a", "there is no option --runs, did you mean '--parts'?"),
        ("--method chanel", "--method cannot be 'chanel', did you mean 'channel'? valid: "),
        ("--parts step x", "--parts cannot be 'x'; valid: step, store"),
        ("--episodes x", "--episodes: invalid literal for int() with base 10: 'x'"),
        ("--episodes", "Missing value for argument '--episodes'. Expected 1 values."),
        ("--seed 4294967296", "--seed must be in [0, 2**32 - 1], got 4294967296"),
        ("--replay-seeds 3 -1", "--replay-seeds must be in [0, 2**32 - 1], got -1"),
    ],
)
def test_a_wrong_line_is_told_in_one(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_command(Settings, line.split())
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(UsageError, match=r"^--out is missing; --help tells more$"):
        parse_command(Needy, [])


@pytest.mark.parametrize("line", ["--resume {}", "{}"])
def test_the_nearest_file_is_named_for_one_that_is_not_there(line: str, tmp_path: Path) -> None:
    (tmp_path / "runs" / "misspelled").mkdir(parents=True)
    for wrong, right in (("runs/misspeled", "runs/misspelled"), ("run/x/y", "runs")):
        with pytest.raises(
            FileNotFoundError, match=f"there is no .*{wrong}', did you mean .*{right}'"
        ):
            parse_command(Settings, line.format(tmp_path / wrong).split())
    found = parse_command(Settings, line.format(tmp_path / "runs").split())
    assert tmp_path / "runs" in (found.resume, *found.runs)


def test_a_wrong_line_ends_a_process_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop, ending_in_one_line():
        parse_command(Settings, ["--episode", "3"])
    assert stop.value.code == 2
    expected = "error: there is no option --episode, did you mean '--episodes'?\n"
    assert capsys.readouterr() == ("", expected)


def test_commands_are_named_as_the_user_has_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "`python -m experiments.compress --seed 1` does it"
    monkeypatch.setattr("sys.argv", ["compress-env trial"])
    assert as_called(text) == "`compress-env compress --seed 1` does it"
    assert resume_hint("experiments.trial", "x") == "go on with: compress-env trial --resume x"
    monkeypatch.setattr("sys.argv", ["python -m experiments.trial"])
    assert as_called(text) == text


def test_a_run_within_another_is_gone_on_with_by_the_outer_one() -> None:
    error = OSError("No space left on device")
    for note in (resume_hint("experiments.trial", "x/search"), "at 3 o'clock"):
        error.add_note(note)
    error.add_note(resume_hint("experiments.rival", "x"))
    hint = resume_hint("experiments.rival", "x")
    assert one_line(error) == f"No space left on device; at 3 o'clock; {hint}"


def test_a_terminal_is_told_nothing_by_names(capsys: pytest.CaptureFixture[str]) -> None:
    name = "x\x1b[31m\x07[red]\u202e"
    shown = r"x\x1b[31m\x07[red]\u202e"
    say(Console(), f"run folder: {name}")
    with pytest.raises(SystemExit, match=re.escape(f"cannot read {shown}; in {shown}")):
        with ending_in_one_line():
            error = ValueError(f"cannot read {name}")
            error.add_note(f"in {name}")
            raise error
    assert capsys.readouterr().out == f"run folder: {shown}\n"


def test_main_job_says_what_is_called_otherwise_there() -> None:
    for old, new in {"n_episodes": "evaluations", "episodes": "evaluations", "dataset": "data",
                     "flops_budget": "macs", "no_baselines": "compare"}.items():  # fmt: skip
        option = f"--{old.replace('_', '-')}"
        with pytest.raises(UsageError, match=f"^{option} is called --{new} now$"):
            parse_command(compress.Config, [option, "3"])
