"""Studies of small networks on few images."""

from __future__ import annotations

import pytest

from compress_env.networks.models import MODELS
from experiments.common import studies
from tests.fakes import PlainNet, make_data


@pytest.fixture
def small_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the networks and data of studies be small ones."""
    for name in ("lenet5", "cnn4"):
        monkeypatch.setitem(MODELS, name, lambda n, shape: PlainNet(n, shape[0], shape[1]))
    monkeypatch.setattr(studies, "load_data", lambda *_, **__: make_data())
