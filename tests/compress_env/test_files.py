"""Tests of replacing a file as a whole."""

import os
import stat
import threading
from pathlib import Path

import pytest

from compress_env.files import replacing


@pytest.mark.parametrize("old", [None, "old"], ids=["new", "existing"])
def test_the_file_is_there_after_the_block(old: str | None, tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    if old is not None:
        target.write_text(old)
    with replacing(target) as path:
        path.write_text("new")
        assert target.exists() == (old is not None)
        assert old is None or target.read_text() == old
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    "error", [RuntimeError("broken"), KeyboardInterrupt("broken")], ids=["error", "interrupt"]
)
@pytest.mark.parametrize("started", [True, False], ids=["half written", "not started"])
def test_a_failed_block_leaves_the_old_file_and_nothing_else(
    error: BaseException, started: bool, tmp_path: Path
) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(type(error), match="broken"), replacing(target) as path:
        if started:
            path.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_replacement_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OSError, match="folder"), replacing(target) as path:
        path.write_text("new")
    assert list(tmp_path.iterdir()) == [target]
    assert target.is_dir()


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.txt"):
        pass
    assert (tmp_path / "a.txt").read_text() == "old"


def test_the_error_of_the_block_is_the_one_that_is_raised(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match="broken"), replacing(tmp_path / "file" / "a"):
        raise RuntimeError("broken")


@pytest.mark.parametrize("name", ["net.safetensors", "figure.png", "rows.csv", "bare"])
def test_the_temporary_path_is_a_neighbour_with_the_same_suffix(name: str, tmp_path: Path) -> None:
    with replacing(tmp_path / name) as path:
        assert path.parent == tmp_path and path.suffix == Path(name).suffix
        assert path.name != name and not path.exists()
        path.touch()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], ids=oct)
def test_permissions_follow_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "a") as path:
            path.write_text("new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    target, contents = tmp_path / "a", [str(i) * 10_000 for i in range(4)]
    barrier = threading.Barrier(4)
    given: list[Path] = []

    def write(content: str) -> None:
        with replacing(target) as path:
            given.append(path)
            barrier.wait()
            path.write_text(content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(given)) == 4
    assert target.read_text() in contents
    assert list(tmp_path.iterdir()) == [target]
