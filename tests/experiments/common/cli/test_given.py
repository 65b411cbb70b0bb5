"""What a command line has given, and what a file may not say in its place."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.common.cli.command import resume_hint
from experiments.common.cli.given import given_in, giving, is_given, trusted
from experiments.compress import compress
from experiments.trial import trial


def test_settings_are_found_however_they_are_written() -> None:
    line = ["--evaluations", "100", "--n_envs=1", "--no-onnx", "--tensorboard", "--label", "seed"]
    expected = {"evaluations", "n_envs", "onnx", "tensorboard", "label"}
    assert given_in(compress.Config, line) == expected


def test_default_counts_where_it_is_given() -> None:
    config = compress.Config(batch_size=64, seed=3)
    assert is_given(config, "seed") and not is_given(config, "batch_size")
    with giving(["batch_size"]):
        assert is_given(config, "batch_size") and not is_given(config, "seed")


@pytest.mark.parametrize("name", ["algo", "task"])
def test_code_is_named_by_the_command_line_alone(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {name: "no_such_module:X"}
    config = replace(trial.Config(), **settings)
    with pytest.raises(ValueError, match=f"only if the command line names it; add --{name} no_su"):
        trusted(config, (), tmp_path)
    assert trusted(config, (name,), tmp_path) == config


def test_code_that_a_program_has_loaded_is_its_own(tmp_path: Path) -> None:
    config = trial.Config(algo=f"{__name__}:X")
    assert trusted(config, (), tmp_path) == config
    with giving([]), pytest.raises(ValueError, match="only if the command line names it"):
        trusted(config, (), tmp_path)


def test_files_outside_are_written_for_the_command_line_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inside, outside = tmp_path / "run" / "store", tmp_path / "store"
    config = compress.Config(store=outside, download=True)
    with caplog.at_level(logging.WARNING):
        assert trusted(config, (), tmp_path / "run") == compress.Config()
    assert "going on without store=" in caplog.text
    assert trusted(config, ("store", "download"), tmp_path / "run") == config
    assert trusted(compress.Config(store=inside), (), tmp_path / "run").store == inside
    nested = trial.Config(env_kwargs='{"store": "x"}')
    with pytest.raises(ValueError, match="taken from the command line alone; add --env-kwargs"):
        trusted(nested, (), tmp_path)
    assert trusted(nested, ("env_kwargs",), tmp_path) == nested


def test_hint_names_what_must_be_named_again() -> None:
    config = trial.Config(algo="mine:A", store=Path("a b"))
    expected = "go on with: python -m x --algo mine:A --store 'a b' --resume run"
    assert resume_hint("x", "run", config) == expected
    assert resume_hint("x", "run", compress.Config()) == "go on with: python -m x --resume run"


def test_hint_names_places_that_a_resumption_was_given() -> None:
    config = compress.Config(weights=Path("new.pt"), data_root=Path("b"), resume=Path("run"))
    with giving(["weights", "data_root", "resume"]):
        hint = resume_hint("x", "run", config)
        assert hint.endswith("python -m x --weights new.pt --data-root b --resume run")
    with giving(["resume"]):
        assert resume_hint("x", "run", config).endswith("python -m x --resume run")
    with giving(["weights", "data_root"]):
        assert resume_hint("x", "run", replace(config, resume=None)).endswith("x --resume run")
