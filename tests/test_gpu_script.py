"""The script for eight minutes with a GPU, rehearsed without one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.pages import ROOT

SCRIPT = ROOT / "scripts" / "gpu.sh"
PARTS = (
    *("device", "tests", "step-resnet20", "train-bf16-True", "train-bf16-False", "step-vgg8"),
    *("search", "candidates", "train-vgg8"),
)
TIMEOUT = 600


def rehearse(work: Path, out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    given = {"WORK": str(work), "OUT": str(out), "PATH": path, "WHEELS": str(work / "none")}
    return subprocess.run(
        ["bash", str(SCRIPT), "--device", "cpu", "--tiny"],
        env={**os.environ, **given, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@pytest.mark.slow
def test_all_parts_run_on_the_cpu_and_are_packed(tmp_path: Path) -> None:
    done = rehearse(tmp_path / "work", tmp_path / "out", LIMIT="500")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in PARTS:
        assert f"{name}: done in" in done.stdout, done.stdout
    with tarfile.open(tmp_path / "out" / "gpu.tar.gz") as packed:
        names = packed.getnames()
        assert {f"./{name}.done" for name in PARTS} <= set(names)
        assert "./train-vgg8/model.safetensors" in names and "./candidates/table.csv" in names
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["gpu.tar.gz"]
    # An archive of an earlier call is taken up, elsewhere too.
    archive = shutil.copy(tmp_path / "out" / "gpu.tar.gz", tmp_path / "earlier.tar.gz")
    again = rehearse(tmp_path / "elsewhere", tmp_path / "out", ARCHIVE=str(archive))
    assert again.returncode == 0 and again.stdout.count("done before") == len(PARTS)


def test_no_more_time_than_there_is_and_no_unknown_argument(tmp_path: Path) -> None:
    done = rehearse(tmp_path / "work", tmp_path / "out", LIMIT="0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "device: no time left" in done.stdout and "done in" not in done.stdout
    wrong = subprocess.run(
        ["bash", str(SCRIPT), "--gpu"], capture_output=True, text=True, timeout=60, check=False
    )
    assert wrong.returncode == 2 and "unknown argument --gpu" in wrong.stderr


def test_images_that_were_unpacked_by_half_are_unpacked_again(tmp_path: Path) -> None:
    tree = tmp_path / "tree" / "train" / "0"
    tree.mkdir(parents=True)
    for number in range(20):
        (tree / f"{number}.jpg").write_bytes(os.urandom(20_000))
    whole, half = tmp_path / "whole.tar.gz", tmp_path / "half.tar.gz"
    with tarfile.open(whole, "w:gz") as packed:
        packed.add(tree.parent, "train")
    half.write_bytes(whole.read_bytes()[:200_000])
    failed = prepare(tmp_path, half)
    assert failed.returncode == 1 and "the preparation has failed" in failed.stderr
    prepare(tmp_path, whole)
    assert len(list((tmp_path / "work" / "cifar10" / "train" / "0").iterdir())) == 20
    assert not (tmp_path / "work" / "cifar10.new").exists()


def prepare(folder: Path, data: Path) -> subprocess.CompletedProcess[str]:
    """Prepare the images of a run that has no time, with a python3 that does nothing."""
    python = folder / "bin" / "python3"
    python.parent.mkdir(exist_ok=True)
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    given = {
        "WORK": str(folder / "work"),
        "OUT": str(folder / "out"),
        "DATA": str(data),
        "WHEELS": str(folder / "none"),
        "LIMIT": "0",
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
    }
    return subprocess.run(
        ["bash", str(SCRIPT)],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
