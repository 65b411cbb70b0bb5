"""The measurement of the suite, on a network that is trained for one epoch."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from compress_env.networks.models import RECIPES, Recipe
from experiments.suite.suite import Config, run


def test_a_row_has_what_is_fixed_and_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, ("vgg8", "digits16"), Recipe(epochs=1))
    text = StringIO()
    (row,) = run(Config(("PruneVGG8Digits-v0",), episodes=1, train=True), Console(file=text))
    assert row[:5] == ("PruneVGG8Digits-v0", "vgg8", "digits16", "pruning", "8")
    assert row[8] == "1 epochs"
    assert all(0.0 < float(cell) <= 100.0 for cell in row[9:12])
    assert len(set(row[12].split(" / "))) == 1  # one random episode is its own best and worst
    assert len(row) == 15 and int(row[14]) >= 0
    assert text.getvalue().count("s / training") == 1
    assert "| " + " | ".join(row) + " |" in text.getvalue()


def test_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown task 'x'; valid: PruneLeNet5Digits-v1, "):
        run(Config(("x",)), Console(file=StringIO()))
