"""Run folders: one process at a time, whole states, and the inputs that a run was started with."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.common.inputs import data_digest, network_digest
from experiments.common.run_folder import RunFolder, read_config, resume_run
from tests.fakes import PlainNet, make_data, seeded


@dataclass(frozen=True)
class Settings:
    """Of no experiment."""

    name: str = "x"
    resume: Path | None = None


@dataclass(frozen=True)
class LaterSettings(Settings):
    """Of the same experiment, after a setting was added."""

    nominate_by: str = "critic"


@dataclass(frozen=True)
class SearchSettings(Settings):
    """With an agent, which a program may hand over."""

    algo: str = "random"


@dataclass(frozen=True)
class WholeSettings:
    """Of an experiment that runs at one go."""

    name: str = "x"


N_PROCESSES, N_TURNS = 4, 50


def take_turns(path: Path, results: Any) -> None:
    """Hold the folder again and again; count how often somebody else held it too."""
    n_held, n_shared = 0, 0
    while n_held < N_TURNS:
        with suppress(ValueError), closing(RunFolder(path)):
            try:
                os.close(os.open(path.with_name("witness"), os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                n_shared += 1
            else:
                os.unlink(path.with_name("witness"))
            n_held += 1
    results.put(n_shared)


def test_no_two_processes_hold_a_folder(tmp_path: Path) -> None:
    with closing(RunFolder(tmp_path / "run", Settings())) as folder:
        folder.finish([{"a": 1}])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "experiments.common.run_folder"])
    results = context.Queue()
    arguments = (tmp_path / "run", results)
    processes = [context.Process(target=take_turns, args=arguments) for _ in range(N_PROCESSES)]
    for process in processes:
        process.start()
    assert [results.get() for _ in processes] == [0] * N_PROCESSES
    for process in processes:
        process.join()
    assert not (tmp_path / "run" / ".lock").exists()


def test_closing_twice_takes_the_lock_from_nobody(tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "run", Settings())
    first.close()
    with closing(RunFolder(tmp_path / "run")):
        first.close()
        with pytest.raises(ValueError, match="is in use by another process"):
            RunFolder(tmp_path / "run")


@pytest.mark.parametrize("names", [(".lock",), ("state/",), (".lock", "state/", ".config")])
def test_folder_that_nothing_was_begun_in_is_begun(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        path = tmp_path / name.replace(".config", f".config-{'0' * 32}.json")
        path.mkdir() if name.endswith("/") else path.touch()
    with pytest.raises(ValueError, match="nothing was begun there; --out takes it as it is"):
        resume_run(Settings(), tmp_path)
    RunFolder(tmp_path, Settings()).close()
    settings, folder = resume_run(Settings(), tmp_path)
    folder.close()
    assert settings == Settings(resume=tmp_path)


def test_a_run_from_before_a_setting_was_added_goes_on(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", Settings("y")).close()
    found = read_config(LaterSettings, tmp_path / "run")
    assert found == LaterSettings("y", nominate_by="accuracy")
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"name": "y"', '"name": "z"'))
    with pytest.raises(ValueError, match="has been changed"):
        read_config(LaterSettings, tmp_path / "run")


@pytest.mark.parametrize("name", ["state/x.pt", "config.json", "mine.txt", ".hidden"])
def test_folder_that_holds_files_is_left_alone(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        RunFolder(tmp_path, Settings())
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_folder_of_a_stopped_run_tells_how_to_go_on(tmp_path: Path) -> None:
    path = tmp_path / "a b"
    RunFolder(path, Settings("y")).close()
    with pytest.raises(ValueError, match=r"not empty; --resume '.*a b' goes on with what is the"):
        RunFolder(path, Settings())
    resume_run(Settings(), path)[1].close()


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", "[" * 100_000, "\0", '{"name": 3}', '{"name": "x", "inputs": 3}',
     '{"name": "x", "resume": null, "inputs": {"settings": "0"}}',
     '{"name": "object:X", "algo": "object:X", "resume": null}'],
    ids=["empty", "half", "list", "bare", "deep", "null", "kind", "inputs", "changed", "object"],
)  # fmt: skip
def test_folder_that_cannot_go_on_does_not_promise_it(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"is not empty$"):
        RunFolder(tmp_path, SearchSettings())


def test_folder_of_another_kind_of_run_does_not_promise_to_go_on(tmp_path: Path) -> None:
    RunFolder(tmp_path / "endless", WholeSettings()).close()
    with pytest.raises(ValueError, match=r"is not empty$"):
        RunFolder(tmp_path / "endless", WholeSettings())
    with closing(RunFolder(tmp_path / "finished", Settings())) as folder:
        folder.finish([{"a": 1}])
    with pytest.raises(ValueError, match=r"is not empty$"):
        RunFolder(tmp_path / "finished", Settings())


STATE: dict[str, Any] = {"weights": torch.arange(8.0), "n": 3, "names": ["a", "b"], "share": 0.5}


def test_flipped_bit_of_a_state_is_noticed(tmp_path: Path) -> None:
    with closing(RunFolder(tmp_path / "run", Settings())) as folder:
        folder.write_state("x", STATE)
        path = folder.state_path / "x.pt"
        content = path.read_bytes()
        places = random.Random(0)
        n_refused = 0
        for _ in range(300):
            damaged = bytearray(content)
            damaged[places.randrange(len(content))] ^= 1 << places.randrange(8)
            path.write_bytes(damaged)
            try:
                found = folder.read_state("x")
            except ValueError as error:
                assert str(error).startswith("cannot read ") and "\n" not in str(error)
                n_refused += 1
                continue
            assert found is not None and torch.equal(found.pop("weights"), STATE["weights"])
            assert found == {key: value for key, value in STATE.items() if key != "weights"}
        assert n_refused > 100
        for damaged_text in (b"", content[:-1], content[: len(content) // 2], b"\x80\x04N."):
            path.write_bytes(damaged_text)
            with pytest.raises(ValueError, match=r"cannot read .*x\.pt"):
                folder.read_state("x")


def test_state_from_a_gpu_is_read_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(RunFolder(tmp_path / "run", Settings())) as folder:
        with monkeypatch.context() as patch:  # what the file says of where its tensors were
            patch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
            folder.write_state("x", {"weights": torch.ones(4)})
        found = folder.read_state("x")
    assert found is not None and found["weights"].device.type == "cpu"
    assert torch.equal(found["weights"], torch.ones(4))


def test_number_of_a_tensor_is_covered(tmp_path: Path) -> None:
    with closing(RunFolder(tmp_path / "run", Settings())) as folder:
        folder.write_state("x", {"weights": torch.full((4,), 1.2345)})
        path = folder.state_path / "x.pt"
        content = bytearray(path.read_bytes())
        content[content.index(torch.full((4,), 1.2345).numpy().tobytes()) + 1] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"the checksum of .* is wrong"):
            folder.read_state("x")


def test_state_of_another_kind_is_told_in_one_line(tmp_path: Path) -> None:
    with closing(RunFolder(tmp_path / "run", Settings())) as folder:
        folder.write_state("x", {"n": 1})
        with pytest.raises(ValueError, match=r"x\.pt' does not fit this run: KeyError: 'm'"):
            with folder.using("x"):
                (folder.read_state("x") or {})["m"]
        with pytest.raises(ValueError, match="is not a name"):
            folder.write_state("../x", {})


def test_inputs_are_kept_and_compared(tmp_path: Path) -> None:
    with closing(RunFolder(tmp_path / "run", Settings())) as folder:
        folder.hold_to({"network": "a" * 64})
        folder.hold_to({"network": "a" * 64, "data": "b" * 64})
        with pytest.raises(ValueError, match=r"the data here is not what .* was started with"):
            folder.hold_to({"network": "a" * 64, "data": "c" * 64})


def test_folder_of_an_earlier_version_takes_what_it_is_given(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", Settings()).close()
    path = tmp_path / "run" / "config.json"
    content = json.loads(path.read_text())
    del content["inputs"]
    path.write_text(json.dumps(content))
    _, folder = resume_run(Settings(), tmp_path / "run")
    with closing(folder):
        folder.hold_to({"network": "a" * 64})
        with pytest.raises(ValueError, match="the network here is not"):
            folder.hold_to({"network": "b" * 64})


def test_digests_tell_networks_and_data_apart() -> None:
    network = seeded(PlainNet)
    before = network_digest(network)
    assert network_digest(seeded(PlainNet)) == before
    next(network.parameters()).data.flatten()[0] += 1e-6
    assert network_digest(network) != before
    assert data_digest(make_data()) == data_digest(make_data())
    assert data_digest(make_data()) != data_digest(make_data(seed=1))


def test_links_out_of_a_run_are_not_followed(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", Settings()).close()
    (tmp_path / "victim").mkdir()
    (tmp_path / "run" / "state").rmdir()
    (tmp_path / "run" / "state").symlink_to(tmp_path / "victim")
    with pytest.raises(ValueError, match="state' is a link that leads out of"):
        resume_run(Settings(), tmp_path / "run")


def test_links_in_a_folder_to_begin_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state").symlink_to(tmp_path / "victim")
    with pytest.raises(ValueError, match="is not empty"):
        RunFolder(tmp_path / "run", Settings())


def test_run_that_could_not_begin_takes_nothing_of_others(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", Settings())
    (tmp_path / "run" / "theirs").write_text("mine")
    folder.discard()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["theirs"]
