"""Tests of names that a caller gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress_env.names import check_name, nearest, nearest_path

MODELS = ("lenet5", "vgg16", "ResNet18")


def test_a_valid_name_is_returned() -> None:
    assert check_name("model", "vgg16", MODELS) == "vgg16"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lenet", ", did you mean 'lenet5'?"),
        ("VGG16", ", did you mean 'vgg16'?"),
        ("resnet", ", did you mean 'ResNet18'?"),
        ("transformer", ""),
    ],
)
def test_the_nearest_name_is_suggested(name: str, hint: str) -> None:
    assert nearest(name, MODELS) == hint


def test_an_error_says_the_nearest_and_all_names() -> None:
    message = r"unknown model 'vgg', did you mean 'vgg16'\? valid: lenet5, vgg16, ResNet18$"
    with pytest.raises(ValueError, match=message):
        check_name("model", "vgg", iter(MODELS))


def test_an_error_without_a_near_name_lists_all() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'x'; valid: lenet5, vgg16, ResNet18$"):
        check_name("model", "x", MODELS)


def test_the_nearest_file_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "file").touch()
    hint = f", did you mean '{tmp_path}/runs/first'?"
    assert nearest_path(tmp_path / "runs" / "frist") == hint
    assert nearest_path(tmp_path / "rns" / "first") == f", did you mean '{tmp_path}/runs'?"
    assert nearest_path(tmp_path / "runs" / "file" / "x") == ""
    assert nearest_path(tmp_path / "zzz") == ""
