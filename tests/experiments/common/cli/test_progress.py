"""What a search tells of itself where no terminal shows a bar."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from experiments.common.cli.heartbeat import MOST_S, Heartbeat, format_seconds, time_left
from experiments.common.cli.progress import SearchProgress
from experiments.common.run_folder import RunFolder
from tests.experiments.common.test_parts import Settings
from tests.fakes import EPISODE


class Clock:
    """Time that passes only when somebody says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def lines(text: StringIO) -> list[str]:
    return text.getvalue().splitlines()


@pytest.fixture
def searched(tmp_path: Path) -> tuple[Clock, StringIO, SearchProgress]:
    text, clock = StringIO(), Clock()
    console, folder = Console(file=text), RunFolder(tmp_path / "run", Settings())
    return clock, text, SearchProgress("ppo", 20, folder, console, clock=clock)


def log_of(*episodes: Any) -> Any:
    return SimpleNamespace(episodes=list(episodes), hit_rate=lambda: 0.5)


def test_a_piped_search_says_what_it_will_do_how_long_it_takes_and_how_far_it_is(
    searched: tuple[Clock, StringIO, SearchProgress], tmp_path: Path
) -> None:
    clock, text, progress = searched
    with progress.shown():
        episodes = []
        for number in range(10):
            clock.now += 6.0
            episodes.append(replace(EPISODE, index=number))
            progress.advance(episodes[-1], log_of(*episodes))
    assert lines(text) == [
        "ppo: 20 episodes",
        "ppo: about 2 min for 20 episodes",
        "ppo: 3/20 episodes, best 0.9000 at 10.0, about 2 min left",
        "ppo: 5/20 episodes, best 0.9000 at 10.0, about 90 s left",
        "ppo: 7/20 episodes, best 0.9000 at 10.0, about 78 s left",
        "ppo: 9/20 episodes, best 0.9000 at 10.0, about 66 s left",
        "ppo: best validation accuracy 0.9000 at 10",
    ]
    progress_file = json.loads((tmp_path / "run" / "progress.json").read_text())
    assert (progress_file["episode"], progress_file["episodes"]) == (10, 20)


def test_a_search_that_goes_on_reckons_with_its_own_time(
    searched: tuple[Clock, StringIO, SearchProgress],
) -> None:
    clock, text, progress = searched
    clock.now += 5.0
    progress.advance(replace(EPISODE, index=10), log_of(*[replace(EPISODE, index=9)] * 2))
    assert lines(text) == ["ppo: about 50 s for 10 episodes"]


def test_no_line_comes_too_soon_and_none_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.common.cli.heartbeat.WAKE_S", 0.001)
    text, clock = StringIO(), Clock()
    heartbeat: Heartbeat = Heartbeat(
        Console(file=text), lambda: f"at {heartbeat.seconds:.0f}", clock
    )
    for _ in range(31):
        heartbeat.tick(MOST_S)
        clock.now += 1.0
    heartbeat.tick()
    assert lines(text) == ["at 15", "at 30"]
    with heartbeat.beating():
        clock.now += MOST_S
        while len(lines(text)) < 3:  # by its own thread
            pass


def test_a_terminal_is_shown_no_lines() -> None:
    text, clock = StringIO(), Clock()
    heartbeat = Heartbeat(Console(file=text, force_terminal=True), lambda: "x", clock)
    clock.now += 100.0
    with heartbeat.beating():
        heartbeat.tick()
    assert text.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (130, "2 min"), (7560, "2.1 h")]
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_the_rest_takes_as_long_as_before() -> None:
    assert time_left(10.0, 2, 8) == "about 30 s left"
    assert time_left(10.0, 9, 8) == "about 0 s left"
