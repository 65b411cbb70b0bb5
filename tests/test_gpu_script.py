"""The script for eight minutes with a GPU, rehearsed without one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
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
    done = pretend(tmp_path, {"LIMIT": "20"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "device: no time left" in done.stdout and "done in" not in done.stdout
    assert "gpu.tar.gz" not in done.stdout
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
    """Prepare the images of a run that has no time for its parts."""
    return pretend(folder, {"DATA": str(data), "LIMIT": "20"}, tiny=False)


def pretend(
    folder: Path,
    environment: Mapping[str, str] = {},
    *,
    programs: Mapping[str, str] = {},
    tiny: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run the script with programs in place of the system's, a python3 that does nothing first.

    Args:
        folder: What is run, written and told lies here.
        environment: Variables in place of the usual ones.
        programs: Scripts by their names.
        tiny: Whether to rehearse.
    """
    for name, text in ({"python3": ""} | dict(programs)).items():
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    given = {
        "WORK": str(folder / "work"),
        "OUT": str(folder / "out"),
        "WHEELS": str(folder / "none"),
        "ARCHIVE": str(folder / "none"),
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    return subprocess.run(
        ["bash", str(SCRIPT), "--device", "cpu", *(["--tiny"] if tiny else [])],
        env={**os.environ, **given, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", ["OUT", "WORK"])
@pytest.mark.parametrize("below", ["", "/a/b"])
def test_a_folder_that_cannot_be_made_ends_it_with_one_line(
    name: str, below: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    done = pretend(tmp_path, {name: f"{tmp_path / 'file'}{below}"})
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith(f"error: cannot make the folder {tmp_path / 'file'}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("limit", ["8m", "-1", "1.5", "x"])
def test_a_limit_that_is_no_number_of_seconds_is_refused(limit: str, tmp_path: Path) -> None:
    done = pretend(tmp_path, {"LIMIT": limit})
    assert done.returncode == 2 and not done.stdout and not (tmp_path / "out").exists()
    assert done.stderr == f"error: LIMIT must be a number of seconds, got {limit}\n"


@pytest.mark.parametrize("program", ["tar", "gzip"])
def test_an_archive_that_cannot_be_written_is_told_and_leaves_no_half(
    program: str, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "gpu.tar.gz").write_text("before")
    done = pretend(tmp_path, programs={program: "echo half; exit 2"})
    assert done.returncode == 1 and "device: done in" in done.stdout
    assert f"error: cannot pack {tmp_path / 'work'} into" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["gpu.tar.gz"]
    assert (tmp_path / "out" / "gpu.tar.gz").read_text() == "before"


def test_no_part_and_no_preparation_takes_longer_than_the_limit(tmp_path: Path) -> None:
    start = time.monotonic()
    slow = pretend(tmp_path, {"LIMIT": "17"}, programs={"python3": "exec sleep 60"})
    assert slow.returncode == 1 and "the preparation has failed after" in slow.stderr
    parts = 'case "$*" in *get_device_name*) trap "" TERM; while :; do sleep 1; done; esac'
    stopped = pretend(tmp_path, {"LIMIT": "27"}, programs={"python3": parts})
    assert "device: stopped after" in stopped.stdout
    assert time.monotonic() - start < 17 + 27


def test_a_resumption_is_told_where_images_and_weights_are_now(tmp_path: Path) -> None:
    for name in ("search", "step-resnet20", "train-bf16-True"):
        (tmp_path / "work" / name).mkdir(parents=True)
        (tmp_path / "work" / name / "config.json").touch()
    (tmp_path / "work" / "train-bf16-True" / "table.csv").touch()
    (tmp_path / "images").mkdir()
    told = f'echo "$@" >>"{tmp_path / "told"}"'
    pretend(tmp_path, {"DATA": str(tmp_path / "images")}, programs={"python3": told}, tiny=False)
    work = tmp_path / "work"
    lines = (tmp_path / "told").read_text().splitlines()
    images, weights = f"--data-root {work}/cifar10", f"{work}/train-bf16-True/model.safetensors"
    resumed = f"-m experiments compress {images} --weights {weights} --resume {work}/search"
    assert resumed in lines
    assert f"-m experiments train {images} --resume {work}/train-bf16-True" in lines
    assert any("train-bf16-False" in line and "--model resnet20" in line for line in lines)
