"""A sweep on a real Ray cluster of two nodes, one of which is killed in the middle."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.sweep import sweep
from experiments.sweep.folder import SweepFolder

Cluster: Any = pytest.importorskip("ray.cluster_utils").Cluster

GRID = ("--algo", "ppo", "--seeds", "0", "1", "2")
OPTIONS = (
    "--evaluations=12",
    "--finetune-steps=1",
    "--final-finetune-steps=2",
    "--no-onnx",
    "--compare",
)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Start two nodes with a CPU each; processes of their own, on this machine."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a token would be kept in the user's home
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else others on a busy machine starve them
    head = {"num_cpus": 1, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args=head)
    try:
        started.add_node(num_cpus=1)
        yield started
    finally:
        started.shutdown()


def wait_for_state_on(node_id: str, folder: SweepFolder, driver: subprocess.Popen[str]) -> str:
    """Wait until the node works on a cell that has saved some state; return the cell's name."""
    while driver.poll() is None:
        for path in folder.path.glob("attempts/*.jsonl"):
            last = folder.records(path.stem)[-1]
            here = last["node"].endswith(f"/{node_id[:12]}")
            if here and last["event"] == "started" and any(folder.cell(path.stem).glob("state/*")):
                return path.stem
        time.sleep(0.05)
    raise AssertionError("the sweep has ended before")


@pytest.mark.slow  # three processes of Ray, and two jobs one after another
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # processes that Ray's Cluster leaves open
def test_cells_of_a_killed_node_go_on_elsewhere_and_finish_once(
    cluster: Any, tmp_path: Path
) -> None:
    folder = SweepFolder(tmp_path / "out")
    arguments = [*GRID, "--out", str(folder.path), "--ray", cluster.address, "--", *OPTIONS]
    command = [sys.executable, "-m", "experiments.sweep", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        try:
            (node,) = cluster.worker_nodes
            hit = wait_for_state_on(node.node_id, folder, driver)
            cluster.remove_node(node, allow_graceful=False)
            shown = driver.communicate()[0]
        finally:
            driver.kill()
    assert driver.returncode == 0, shown
    assert "3 of 3 cells finished" in shown
    names = sorted(path.name for path in folder.path.glob("cells/*"))
    records = {name: folder.records(name) for name in names}
    events = {name: [record["event"] for record in records[name]] for name in names}
    assert len(names) == 3
    assert [e.count("finished") for e in events.values()] == [1] * 3
    assert events[hit] == ["started", "started", "finished"]
    assert records[hit][0]["node"] != records[hit][1]["node"]
    assert records[hit][1]["source"] == "state"
    assert f"{hit}: goes on from its saved state on {records[hit][1]['node']}" in shown

    table = pd.read_csv(folder.path / "sweep.csv")
    assert set(table["cell"]) == {f"cells/{name}" for name in names}
    assert list(table["seed"]) == [seed for seed in range(3) for _ in range(2)]
    assert list(table["network"]) == ["baseline", "ppo"] * 3
    config = json.loads((folder.cell(hit) / "config.json").read_text())
    assert (config["evaluations"], config["hardware"]["torch_threads"]) == (12, 1)


def test_cluster_that_is_not_there_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["sweep", "--ray", "127.0.0.1:1", "--out", str(out)])
    with pytest.raises(
        SystemExit, match=r"^error: cannot reach Ray at '127\.0\.0\.1:1': "
    ) as caught:
        sweep.main()
    assert "\n" not in str(caught.value)
    assert not out.exists()
