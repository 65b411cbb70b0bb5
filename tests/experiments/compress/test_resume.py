"""A job that is stopped, however rudely, goes on as if nothing had happened."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import replace
from io import StringIO
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console
from stable_baselines3.common.vec_env import DummyVecEnv

from compress_env.envs.pruning import PruningEnv
from compress_env.networks.checkpoints import read_safetensors
from compress_env.task.task import CompressionTask
from experiments.common.run_folder import RunFolder
from experiments.compress import finetuning
from experiments.compress.compress import Config, run
from experiments.search import resuming
from experiments.search.algorithms import make_learner
from experiments.search.episodes import EpisodeLog
from experiments.search.resuming import ResumableSearch
from tests.experiments.compress.jobs import LENET, SMALL, stopped_run
from tests.fakes import PlainNet, flags, make_data, quiet, seeded, slow, stop_after_state

pytestmark = pytest.mark.usefixtures("blank_figures")

# Longer than the agent's random start, so that there are updates to resume.
LONG: dict[str, Any] = LENET | {
    "algo": "q_critic_ppo",
    "evaluations": 30,
    "finetune_steps": 3,
    "final_finetune_steps": 30,
    "compare": (),
    "onnx": False,
}


def work(settings: dict[str, Any]) -> None:
    """Run or resume a job in a process of its own."""
    torch.set_num_threads(1)
    run(Config(**settings), quiet())


def outcome(folder: Path) -> tuple[str, str, dict[str, bytes]]:
    """What a run has come to, times aside."""
    episodes = pd.read_csv(folder / "episodes.csv").drop(columns="seconds").to_csv()
    networks = {path.name: path.read_bytes() for path in folder.glob("network-*")}
    assert len(networks) >= 2
    return episodes, (folder / "policy.json").read_text(), networks


def watch(process: BaseProcess, folder: Path, n_saves: int) -> None:
    """Wait until a job has saved its state so many times, or has ended."""
    before: set[tuple[str, int]] | None = None
    while n_saves >= 0 and process.exitcode is None:
        with suppress(FileNotFoundError):
            now = {(path.name, path.stat().st_mtime_ns) for path in folder.glob("state/*.*")}
            n_saves -= now != before
            before = now
        time.sleep(0.002)


@pytest.mark.slow
def test_job_killed_at_twenty_random_moments_ends_as_if_undisturbed(tmp_path: Path) -> None:
    run(Config(out=tmp_path / "whole", **LONG), quiet())
    moments = random.Random(0)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.compress"])
    n_kills, n_finished = 0, 0
    states: set[tuple[bytes, ...]] = set()
    while n_kills < 20 or n_finished == 0:
        folder = tmp_path / f"killed-{n_finished}"
        begun = (folder / "config.json").exists()
        settings = {"resume": folder} if begun else {"out": folder} | LONG
        process = context.Process(target=work, args=(settings,))
        process.start()
        if n_kills == 20:
            process.join()
        else:
            watch(process, folder, n_saves=moments.randrange(7))
            process.join(moments.uniform(0.0, 0.1))
        if process.exitcode is None:
            process.kill()
            process.join()
            n_kills += 1
            states.add(tuple(path.read_bytes() for path in sorted(folder.glob("state/*"))))
        else:
            assert process.exitcode == 0, "a resumed job must not fail"
            assert outcome(folder) == outcome(tmp_path / "whole")
            n_finished += 1
    assert len(states) > 3, "the moments are spread over the job"


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments.compress", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
    ids=["SIGINT", "SIGTERM"],
)
def test_signal_ends_the_job_with_a_word_on_how_to_go_on(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = start("--out", str(folder), *flags(LONG))
    state = folder / "state" / "q_critic_ppo-pruning.pt"
    while not state.exists():
        assert process.poll() is None, "it did not come to that"
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate()
    assert process.returncode == status
    last = stderr.splitlines()[-1]
    assert last.startswith(f"interrupted by {number.name}; go on with: python -m experiments.")
    assert last.endswith(f"--resume {folder}")
    episodes = pd.read_csv(folder / "episodes.csv")
    assert len(episodes) > 0 and state.exists()
    assert not (folder / ".lock").exists()
    assert RunFolder(folder).read_state("q_critic_ppo-pruning") is not None


@pytest.mark.parametrize("algo", ["ppo", *slow("random", "kl_ppo", "a2c", "ddpg", "td3", "sac")])
def test_every_algorithm_goes_on_exactly(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = LENET | {"algo": algo, "evaluations": 12, "finetune_steps": 0}
    settings |= {"final_finetune_steps": 0, "compare": (), "onnx": False}
    run(Config(out=tmp_path / "whole", **settings), quiet())
    write = RunFolder.write_state
    n_written = 0

    def write_and_stop(self: RunFolder, name: str, state: dict[str, Any]) -> None:
        nonlocal n_written
        write(self, name, state)
        n_written += 1
        if n_written % 2 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "write_state", write_and_stop)
    folder, config = tmp_path / "stopped", Config(out=tmp_path / "stopped", **settings)
    n_stops = 0
    while not (folder / "table.csv").exists():
        try:
            run(config, quiet())
        except KeyboardInterrupt:
            n_stops += 1
        config = Config(resume=folder)
    assert n_stops >= 4
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("algo", ["cma_es", "tpe"])
def test_every_black_box_search_goes_on_exactly(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long enough for two generations, and for points that are drawn from a model."""

    def search(path: Path) -> list[Any]:
        config = None if path.exists() else Config(out=path)
        with closing(RunFolder(path, config)) as folder:
            env = PruningEnv(seeded(PlainNet), make_data(), finetune_steps=0, device="cpu")
            log = EpisodeLog(DummyVecEnv([lambda: env]))
            agent = make_learner(algo, log, n_steps=48, seed=1)
            ResumableSearch("search", log, folder).learn(agent, 16)
        return [replace(episode, seconds=0.0) for episode in log.episodes]

    whole = search(tmp_path / "whole")
    write, states = RunFolder.write_state, []

    def write_and_stop(self: RunFolder, name: str, state: dict[str, Any]) -> None:
        write(self, name, state)
        states.append(state)
        if len(states) % 3 == 0 and not state["is_finished"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "write_state", write_and_stop)
    monkeypatch.setattr(resuming, "SAVING_SHARE", 1.0)  # saves after every episode
    n_stops = 0
    while not (states and states[-1]["is_finished"]):
        try:
            stopped = search(tmp_path / "stopped")
        except KeyboardInterrupt:
            n_stops += 1
    assert n_stops >= 4
    assert len({episode.actions for episode in whole}) == 16
    assert stopped == whole


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "finished"
    run(Config(out=folder, **SMALL), quiet())
    return folder


def test_finished_run_is_shown_and_not_run_again(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    text = StringIO()
    rows = run(Config(resume=finished), Console(file=text, width=120))
    assert [row.network for row in rows][:3] == ["baseline", "uniform", "random"]
    assert "q_critic_ppo" in text.getvalue()
    assert {path: path.stat().st_mtime_ns for path in finished.iterdir()} == before


def test_resumption_is_told_in_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_run(tmp_path / "run", monkeypatch)
    run(Config(resume=tmp_path / "run"), quiet())
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["resume"] is None
    assert [set(r) >= {"date", "versions"} for r in config["resumptions"]] == [True]


def test_saving_takes_a_small_share_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which a save lasts ten seconds and an episode one."""
    clock, saves = 0.0, 0

    def write_slowly(self: RunFolder, name: str, state: dict[str, Any]) -> None:
        nonlocal clock, saves
        clock, saves = clock + 10.0, saves + 1

    monkeypatch.setattr(RunFolder, "write_state", write_slowly)
    monkeypatch.setattr(resuming, "perf_counter", lambda: clock)
    with closing(RunFolder(tmp_path / "run", Config(out=tmp_path / "run"))) as folder:
        env = PruningEnv(seeded(PlainNet), make_data(), finetune_steps=0, device="cpu")
        log = EpisodeLog(DummyVecEnv([lambda: env]))
        search = ResumableSearch("search", log, folder)
        for _ in range(1000):
            clock += 1.0
            search._save(dict)
    assert clock == 1000.0 + 10.0 * saves
    assert saves == 6  # at 1, and from then on 190 seconds after the one before


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}], ids=str)
def test_names_that_a_terminal_cannot_show_stop_nothing(
    options: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "größe-日本[b]"
    environment = os.environ | {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"} | options
    settings = SMALL | {"evaluations": 1, "compare": (), "label": "Ziffern ä $_"}
    result = subprocess.run(
        [sys.executable, "-m", "experiments.compress", "--out", str(folder), *flags(settings)],
        env=environment,
        capture_output=True,
    )
    assert result.returncode == 0, result.stderr.decode()
    assert b"Traceback" not in result.stderr and (folder / "table.csv").exists()
    assert "Ziffern ä $_" in (folder / "report.md").read_text(encoding="utf-8")


def test_a_final_finetuning_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "PART", 2)
    settings = SMALL | {"algo": "uniform", "compare": ()}
    run(Config(out=tmp_path / "whole", **settings), quiet())
    steps, finetune = [], CompressionTask.finetune

    def noting(task: CompressionTask, model: Any, n: int, *rest: Any, **options: Any) -> None:
        steps.append((n, "carry" in options))
        finetune(task, model, n, *rest, **options)

    with monkeypatch.context() as patch:
        stop_after_state(patch, "*-pruning-finetuning")
        with pytest.raises(KeyboardInterrupt):
            run(Config(out=tmp_path / "run", **settings), quiet())
    monkeypatch.setattr(CompressionTask, "finetune", noting)
    run(Config(resume=tmp_path / "run"), quiet())
    assert [n for n, is_final in steps if is_final] == [2, 1, 2, 2, 1]  # 5 were to do, 2 are done
    for name in ("network-uniform", "baseline"):
        one, other = (
            read_safetensors(tmp_path / x / f"{name}.safetensors") for x in ("run", "whole")
        )
        assert all(torch.equal(one[key], other[key]) for key in one)
