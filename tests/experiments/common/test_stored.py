"""What is read from a run's folder: right, or refused in one line with the file and the field."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from experiments.common.run_folder import RunFolder, read_config
from experiments.common.stored import (
    check_name,
    check_tree,
    find_stored,
    own_name,
    parse,
    read_object,
    read_objects,
    read_table,
    restore,
)
from experiments.compress import compress
from experiments.compress.outcome.report import Row, print_rows, read_rows
from experiments.control import control
from experiments.trial import trial


@dataclass(frozen=True)
class Every:
    """A field of each kind that experiments have."""

    text: str = "a"
    count: int = 1
    share: float = 0.5
    flag: bool = False
    path: Path | None = None
    limit: int | None = None
    kind: Literal["layer", "episode"] = "layer"
    seeds: tuple[int, ...] = (0, 1)
    pairs: tuple[tuple[int, int], ...] = ((1, 2),)


def as_json(config: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return content


def test_what_json_has_kept_is_restored() -> None:
    config = Every(path=Path("a/b"), limit=3)
    assert restore(Every, as_json(config) | {"command": "python"}) == config
    assert isinstance(restore(Every, as_json(config) | {"share": 1}).share, float)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("text", 1, "text must be a text, got 1"),
        ("count", 1.5, "count must be a whole number, got 1.5"),
        ("count", True, "count must be a whole number, got True"),
        ("count", 10**30, "count must be a whole number, got 10000"),
        ("share", float("nan"), "share must be a finite number, got nan"),
        ("share", "0.5", "share must be a finite number, got '0.5'"),
        ("flag", 0, "flag must be true or false, got 0"),
        ("path", 3, "path must be a path or none, got 3"),
        ("path", "a\0b", "path must be a path or none"),
        ("kind", "step", "kind must be 'layer' or 'episode', got 'step'"),
        ("seeds", 3, "seeds must be a list of a whole number, got 3"),
        ("seeds", [1, "x"], "seeds must be a whole number, got 'x'"),
        ("pairs", [[1]], "pairs must be a list of a whole number, a whole number, got"),
    ],
)
def test_value_of_another_kind_is_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        restore(Every, as_json(Every()) | {field: value})


def test_missing_field_is_named() -> None:
    content = as_json(Every())
    del content["seeds"]
    with pytest.raises(ValueError, match="no 'seeds' in it"):
        restore(Every, content)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@pytest.mark.parametrize("kind", [compress.Config, trial.Config, control.Config])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(data=st.data(), value=ANYTHING)
def test_any_value_of_any_setting_is_taken_or_refused_in_one_line(
    kind: type[Any], data: st.DataObject, value: Any, tmp_path: Path
) -> None:
    name = data.draw(st.sampled_from([field.name for field in dataclasses.fields(kind)]))
    (tmp_path / "config.json").write_text(json.dumps(as_json(kind()) | {name: value}))
    try:
        read_config(kind, tmp_path)
    except ValueError as error:
        assert str(tmp_path) in str(error) and "\n" not in str(error)
        assert name in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JSON that can be read"),
        (b"[]", r"must hold a JSON object, got \[\]"),
        (b'{"model": "\xff"}', "is not in UTF-8: byte 11"),
        (b'{"a": ' * 100_000, "nested too deep"),
        (b'{"model": 1' + b"0" * 5000 + b"}", "no JSON that can be read"),
        (b"{}", "no 'model' in it"),
        (b'{"inputs": 1}', "not a run to go on with"),
    ],
    ids=["empty", "list", "not UTF-8", "deep", "huge number", "nothing", "inputs"],
)
def test_config_that_is_none_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_config(compress.Config, tmp_path)
    assert "config.json" in str(caught.value) or "no 'model'" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_changed_bit_of_a_setting_is_noticed(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", compress.Config()).close()
    path = tmp_path / "run" / "config.json"
    text = path.read_text()
    assert read_config(compress.Config, tmp_path / "run") == compress.Config()
    path.write_text(text.replace('"batch_size": 64', '"batch_size": 65'))
    with pytest.raises(ValueError, match=r"its config\.json has been changed"):
        read_config(compress.Config, tmp_path / "run")


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(FileNotFoundError, match="No such file"):
        read_object(tmp_path / "config.json")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        check_tree(tmp_path)


@given(st.text(max_size=20))
def test_name_that_is_accepted_stays_inside(name: str) -> None:
    try:
        check_name(name)
    except ValueError:
        return
    assert Path("/a/b", name).resolve().parent == Path("/a/b")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/x", "a/b", "a\\b", ".ssh", "a\0", "a\n", "c:x", 3, "x" * 201]
)
def test_name_that_is_none_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="is not a name for a cell"):
        check_name(name)
    with pytest.raises(ValueError, match=r"is not a name for a cell|expected cells/NAME"):
        own_name(f"cells/{name}" if name != 3 else 3)


def test_links_that_leave_a_folder_are_refused(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / "sub").mkdir(parents=True)
    outside.mkdir()
    (run / "inner").symlink_to(run / "sub")
    check_tree(run)
    (tmp_path / "link").symlink_to(run)
    check_tree(tmp_path / "link")  # the folder itself may be one
    for target in (outside, outside / "not there", Path("loop")):
        link = run / "sub" / "loop"
        link.symlink_to(target)
        with pytest.raises(ValueError, match="loop' is a link that leads out of"):
            check_tree(run)
        link.unlink()


ROW = Row("uniform", 0.9, 0.1, 0.5, 0.5, 0.5, 0.5, 100, 0.1, 200, True, 3, 1.5)


def write_rows(path: Path, **changes: str) -> None:
    row = {name: "" if value is None else str(value) for name, value in ROW._asdict().items()}
    pd.DataFrame([row | changes]).to_csv(path, index=False)


def test_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_rows(tmp_path / "table.csv")
    assert read_rows(tmp_path / "table.csv") == [ROW]


def test_table_of_an_earlier_version_lacks_times(tmp_path: Path) -> None:
    columns: dict[str, Any] = {"network": ["baseline", "uniform"], "latency_1_ms": [2.0, 1.0]}
    table = pd.DataFrame([ROW._asdict()] * 2)[[*ROW._fields][:15]].assign(**columns)
    table.to_csv(tmp_path / "table.csv", index=False)
    baseline, uniform = read_rows(tmp_path / "table.csv")
    assert (baseline.latency_1, uniform.latency_1, uniform.latency_1_ms) == (1.0, 0.5, 1.0)
    assert uniform.torch_latency_64_ms is None and uniform.onnx_bytes is None
    shown = StringIO()
    print_rows(Console(file=shown, width=80), [baseline, uniform])
    assert "1.000 (50)" in shown.getvalue() and "PyTorch" not in shown.getvalue()


def test_names_in_a_table_are_no_markup(tmp_path: Path) -> None:
    write_rows(tmp_path / "table.csv", network="[/bold]")
    shown = StringIO()
    print_rows(Console(file=shown, width=120), read_rows(tmp_path / "table.csv"))
    assert "[/bold]" in shown.getvalue()


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("test_error", "x"),
        ("test_error", ""),
        ("test_error", "nan"),
        ("macs", "inf"),
        ("size_bytes", "1.5"),
        ("size_bytes", "1e400"),
        ("within_budget", "yes"),
        ("onnx_bytes", "many"),
        ("n_evaluations", "9" * 400),
    ],
)
def test_cell_of_another_kind_is_refused(column: str, text: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "table.csv", **{column: text})
    with pytest.raises(ValueError, match=rf"table\.csv', row 1: {column} must be ") as caught:
        read_rows(tmp_path / "table.csv")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected columns of different names"),
        (b"a,a\n1,2\n", "expected columns of different names"),
        (b"network\nuniform,1\n", "row 1: expected 1 cells, got 2"),
        (b"network\nuniform\n", "has no column validation_accuracy, test_error"),
        (b'network\n"unif', "is no table"),
        (b"network\n\xff\n", "not in UTF-8"),
    ],
    ids=["empty", "twice", "long row", "lacks columns", "open quote", "not UTF-8"],
)
def test_file_that_is_no_table_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / "table.csv")


def test_unknown_columns_stay_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,1\n,2\n")
    table = read_table(tmp_path / "t.csv", ["a"])
    values = parse(tmp_path / "t.csv", table, {"a": int | None, "c": float})
    assert values["a"].tolist()[0] == 1 and values["b"].tolist() == ["1", "2"]


def test_each_line_is_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"event": "started"}\n[]\n')
    with pytest.raises(ValueError, match=r"a\.jsonl', line 2 must hold a JSON object"):
        read_objects(tmp_path / "a.jsonl")


def test_compressed_files_are_read_where_the_plain_ones_are_missing(tmp_path: Path) -> None:
    plain, packed = tmp_path / "rows.csv", tmp_path / "rows.csv.gz"
    assert find_stored(plain) is None
    packed.write_bytes(gzip.compress(b"a,b\n1,2\n", mtime=0))
    assert find_stored(plain) == packed
    assert read_table(plain).to_dict("records") == [{"a": "1", "b": "2"}]
    plain.write_text("a\n3\n")
    assert read_table(plain)["a"].tolist() == ["3"]


@pytest.mark.parametrize(
    "content",
    [b"a,b\n", gzip.compress(b"a,b\n" * 100, mtime=0)[:-12], b"\x1f\x8b"],
    ids=["no gzip", "cut off", "begun"],
)
def test_a_damaged_compressed_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "rows.csv.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"rows\.csv\.gz' cannot be decompressed"):
        read_table(tmp_path / "rows.csv")


@pytest.mark.parametrize("content", ["a\n" * 30, "a," * 30, "[[" * 15, '{"a":' * 30])
def test_a_file_of_too_many_values_is_refused_before_they_are_made(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.common.stored.MAX_VALUES", 20)
    (tmp_path / "t.gz").write_bytes(gzip.compress(content.encode()))
    for read in (read_table, read_object, read_objects):
        with pytest.raises(ValueError, match=r"t' has more than 20 values$"):
            read(tmp_path / "t")


def test_a_compressed_file_has_the_same_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.common.stored.MAX_BYTES", 1024**2)
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(b"a\n" * 1024**2))
    with pytest.raises(ValueError, match="is larger than 1 MiB"):
        read_table(tmp_path / "rows.csv")
