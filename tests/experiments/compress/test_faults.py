"""What goes wrong while a job runs: it goes on, or ends with one line and a folder to resume."""

from __future__ import annotations

import copy
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.networks.models import build_model, save_checkpoint
from compress_env.task.task import CompressionTask
from experiments.common.cli.command import one_line
from experiments.common.cli.progress import SearchProgress
from experiments.compress import compress
from experiments.compress.compress import Config, run
from tests.experiments.compress import jobs
from tests.fakes import flags, quiet

pytestmark = pytest.mark.usefixtures("blank_figures")

SMALL: dict[str, Any] = jobs.SMALL | {
    "evaluations": 4,
    "finetune_steps": 1,
    "final_finetune_steps": 3,
    "compare": (),
}


def same_outcome(first: Path, second: Path) -> bool:
    tables = [pd.read_csv(x / "episodes.csv").drop(columns="seconds") for x in (first, second)]
    policies = [(x / "policy.json").read_text() for x in (first, second)]
    return tables[0].equals(tables[1]) and policies[0] == policies[1]


def fail_at(monkeypatch: pytest.MonkeyPatch, n: int, damage: Callable[[Any], None]) -> None:
    """Do something to the network that is fine-tuned for the n-th time."""
    finetune, n_calls = CompressionTask.finetune, 0

    def failing(self: CompressionTask, model: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == n:
            damage(model)
        finetune(self, model, *args, **kwargs)

    monkeypatch.setattr(CompressionTask, "finetune", failing)


def poison(model: Any) -> None:
    next(model.parameters()).data.fill_(float("nan"))


def exhaust(model: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


@pytest.mark.parametrize(
    ("damage", "error"),
    [(poison, "FloatingPointError"), (exhaust, "OutOfMemoryError: CUDA out of memory")],
    ids=["loss that is not a number", "out of memory"],
)
def test_failed_step_costs_an_episode_and_the_job_goes_on(
    damage: Callable[[Any], None], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, 6, damage)
    rows = run(Config(out=tmp_path / "run", **SMALL), quiet())
    assert len(rows) == 2
    episodes = pd.read_csv(tmp_path / "run" / "episodes.csv")
    failed = episodes[episodes["error"].notna() & (episodes["search"] == "q_critic_ppo")]
    assert len(failed) >= 1 and failed["accuracy"].isna().all()
    assert failed["error"].str.startswith(error).all()
    # Who does the same again fails again, as a known step is not taken a second time.
    assert failed.filter(like="value:").nunique().max() == 1
    assert episodes["error"].isna().sum() > len(failed)


@contextmanager
def in_this_process(env: LayerwiseCompressionEnv, n_envs: int) -> Iterator[VecEnv]:
    """Give what worker processes give, sooner."""
    yield DummyVecEnv([lambda: copy.deepcopy(env)] * n_envs)


@pytest.mark.slow
def test_killed_worker_ends_the_job_which_then_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SMALL | {"n_envs": 2, "algo": "random"}
    with monkeypatch.context() as patch:
        patch.setattr("experiments.compress.stages.open_actors", in_this_process)
        run(Config(out=tmp_path / "whole", **settings), quiet())
    advance = SearchProgress.advance

    def kill_one(self: SearchProgress, episode: Any, log: Any) -> None:
        advance(self, episode, log)
        if episode.index == 2:
            multiprocessing.active_children()[0].kill()

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(SearchProgress, "advance", kill_one)
        with pytest.raises(RuntimeError, match="a worker process has died") as caught:
            run(Config(out=folder, **settings), quiet())
    assert one_line(caught.value).endswith(f"--resume {folder}")
    assert multiprocessing.active_children() == []
    run(Config(resume=folder), quiet())
    assert same_outcome(folder, tmp_path / "whole")


@pytest.mark.slow
def test_full_disk_ends_the_job_which_then_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # In blocks of 512 bytes: enough for the searches, too few for the baseline network.
    limit = 'ulimit -f 300; exec "$@"'
    arguments = flags(SMALL)
    command = [sys.executable, "-m", "experiments.compress", "--out", str(folder), *arguments]
    limited = ["sh", "-c", limit, "sh", *command]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as here: sums depend on it
    result = subprocess.run(limited, capture_output=True, text=True, env=one_thread)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "File too large" in last
    assert last.endswith(f"--resume {folder}")
    assert "Traceback" not in result.stderr
    assert not list(folder.glob(".*-*")), "half-written files"
    run(Config(out=tmp_path / "whole", **SMALL), quiet())
    run(Config(resume=folder), quiet())
    assert same_outcome(folder, tmp_path / "whole")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that nobody can write to")
def test_folder_that_cannot_be_written_to_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["compress", "--out", "/proc/run"])
    with pytest.raises(SystemExit, match="error: cannot write to '/proc/run': "):
        compress.main()


def make_tree(root: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = []
    for split, n_images in (("train", 12), ("test", 8)):
        for label in range(3):
            for number in range(n_images):
                path = root / split / str(label) / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 120, (32, 32, 3)) + 60 * label
                Image.fromarray(pixels.astype(np.uint8)).save(path)
                paths.append(path)
    return paths


@pytest.mark.parametrize("is_lazy", [False, True], ids=["in memory", "read when needed"])
def test_truncated_image_stops_only_who_needs_it_again(
    is_lazy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = make_tree(tmp_path / "tree")
    save_checkpoint(build_model("lenet5", 3, (3, 32, 32)), tmp_path / "weights.safetensors")
    settings = SMALL | {"model": "lenet5", "data": str(tmp_path / "tree"), "macs": 0.3, "size": 0.1}
    settings |= {"weights": tmp_path / "weights.safetensors"}
    if is_lazy:
        monkeypatch.setattr("compress_env.data.bundle._MAX_DECODED_BYTES", 0)
        monkeypatch.setattr("compress_env.data.bundle._MAX_WORKERS", 0)
    run(Config(out=tmp_path / "whole", **settings), quiet())
    contents = {path: path.read_bytes() for path in paths}
    advance = SearchProgress.advance

    def truncate(self: SearchProgress, episode: Any, log: Any) -> None:
        advance(self, episode, log)
        for path in paths:
            os.truncate(path, 100)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(SearchProgress, "advance", truncate)
        if is_lazy:
            with pytest.raises((OSError, ValueError), match="png") as caught:
                run(Config(out=folder, **settings), quiet())
            assert one_line(caught.value).endswith(f"--resume {folder}")
        else:
            run(Config(out=folder, **settings), quiet())
    for path, content in contents.items():
        path.write_bytes(content)
    run(Config(resume=folder), quiet())
    assert same_outcome(folder, tmp_path / "whole")
