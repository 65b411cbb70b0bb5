"""What a job does not go on from, said in one line, and what it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from compress_env.networks.checkpoints import save_checkpoint
from compress_env.networks.models import build_model
from experiments.common.run_folder import RunFolder
from experiments.compress import compress, inputs
from experiments.compress.compress import Config, run
from tests.experiments.compress.jobs import stopped_run
from tests.fakes import quiet, seeded

pytestmark = pytest.mark.usefixtures("blank_figures")


class TestRefusals:
    def test_other_settings(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stopped_run(tmp_path / "run", monkeypatch)
        with pytest.raises(ValueError, match="started with seed=0, it cannot go on with 1"):
            run(Config(resume=tmp_path / "run", seed=1), quiet())

    def test_setting_that_is_given_counts_where_it_is_the_default(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stopped_run(tmp_path / "run", monkeypatch, seed=3)
        arguments = ["compress", "--resume", str(tmp_path / "run"), "--seed"]
        monkeypatch.setattr("sys.argv", [*arguments, "0"])
        message = "error: the run was started with seed=3, it cannot go on with 0"
        with pytest.raises(SystemExit, match=message):
            compress.main()
        monkeypatch.setattr("sys.argv", [*arguments, "3", "--no-tensorboard"])
        compress.main()
        assert (tmp_path / "run" / "table.csv").exists()

    def test_other_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "weights.safetensors"
        save_checkpoint(seeded(lambda: build_model("lenet5", 10, (1, 28, 28))), path)
        stopped_run(tmp_path / "run", monkeypatch, weights=path)
        before = path.read_bytes()
        save_checkpoint(seeded(lambda: build_model("lenet5", 10, (1, 28, 28)), 1), path)
        with pytest.raises(ValueError, match=r"the network here is not what .*run' was started"):
            run(Config(resume=tmp_path / "run"), quiet())
        path.write_bytes(before)
        assert run(Config(resume=tmp_path / "run"), quiet())

    def test_another_place_of_the_same_network_and_no_other_network(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, moved = tmp_path / "weights.safetensors", tmp_path / "moved.safetensors"
        save_checkpoint(seeded(lambda: build_model("lenet5", 10, (1, 28, 28))), path)
        stopped_run(tmp_path / "run", monkeypatch, weights=path)
        path.rename(moved)
        with pytest.raises(FileNotFoundError, match=r"weights\.safetensors"):
            run(Config(resume=tmp_path / "run"), quiet())
        save_checkpoint(seeded(lambda: build_model("lenet5", 10, (1, 28, 28)), 1), path)
        with pytest.raises(ValueError, match=r"the network here is not what .*run' was started"):
            run(Config(resume=tmp_path / "run", weights=path), quiet())
        assert run(Config(resume=tmp_path / "run", weights=moved), quiet())

    def test_other_data(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stopped_run(tmp_path / "run", monkeypatch)
        monkeypatch.setattr(inputs, "data_digest", lambda data: "0" * 64)
        with pytest.raises(ValueError, match=r"the data here is not what .*run' was started"):
            run(Config(resume=tmp_path / "run"), quiet())

    def test_damaged_state(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stopped_run(tmp_path / "run", monkeypatch)
        path = tmp_path / "run" / "state" / "q_critic_ppo-pruning.pt"
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 4
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read .*q_critic_ppo-pruning\.pt"):
            run(Config(resume=tmp_path / "run"), quiet())

    @pytest.mark.parametrize("change", ["drop", "log", "episode", "agent"])
    def test_state_of_another_kind(
        self, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stopped_run(tmp_path / "run", monkeypatch)
        path = tmp_path / "run" / "state" / "q_critic_ppo-pruning.pt"
        state = torch.load(path, weights_only=True)
        if change == "drop":
            del state["is_finished"]
        elif change == "log":
            state["log"] = [1]
        elif change == "episode":
            state["log"]["episodes"][0]["accuracy"] = "high"
        else:
            state["agent"]["tensors"] = {"no_such_tensor": torch.zeros(1)}
        torch.save(state, path)
        with pytest.raises(ValueError, match=r"pruning\.pt' does not fit this run") as caught:
            run(Config(resume=tmp_path / "run"), quiet())
        assert "\n" not in str(caught.value)

    def test_folder_of_an_earlier_version_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stopped_run(tmp_path / "run", monkeypatch)
        path = tmp_path / "run" / "config.json"
        content = json.loads(path.read_text())
        del content["inputs"]
        path.write_text(json.dumps(content))
        assert run(Config(resume=tmp_path / "run"), quiet())
        assert json.loads(path.read_text())["inputs"].keys() >= {"network", "data"}

    def test_store_that_only_a_file_names(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = tmp_path / "store.sqlite"
        stopped_run(tmp_path / "run", monkeypatch, store=store)
        for path in tmp_path.glob("store.sqlite*"):
            path.unlink()
        run(Config(resume=tmp_path / "run"), quiet())
        assert not store.exists()

    def test_folder_that_is_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="is not a run to go on with"):
            run(Config(resume=tmp_path), quiet())
        assert list(tmp_path.iterdir()) == []

    def test_folder_in_use(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stopped_run(tmp_path / "run", monkeypatch)
        other = RunFolder(tmp_path / "run")
        with pytest.raises(ValueError, match="is in use by another process"):
            run(Config(resume=tmp_path / "run"), quiet())
        other.close()
        assert run(Config(resume=tmp_path / "run"), quiet())

    def test_state_with_code_in_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Payload:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (tmp_path / "executed",))

        stopped_run(tmp_path / "run", monkeypatch)
        torch.save({"x": Payload()}, tmp_path / "run" / "state" / "q_critic_ppo-pruning.pt")
        with pytest.raises(ValueError, match=r"cannot read .*q_critic_ppo-pruning\.pt"):
            run(Config(resume=tmp_path / "run"), quiet())
        assert not (tmp_path / "executed").exists()
