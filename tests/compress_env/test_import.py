"""What `import compress_env` brings along: no more than every environment needs."""

from __future__ import annotations

import subprocess
import sys

LATER = {
    "PIL",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "pandas",
    "scipy",
    "sklearn",
    "stable_baselines3",
    "timm",
    "torch_pruning",
    "torchvision",
}
"""Packages that are imported where they are used."""


def test_import_brings_along_only_what_every_environment_needs() -> None:
    script = (
        "import sys, torch, gymnasium\n"
        "before = set(sys.modules)\n"
        "import compress_env\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    brought = set(done.stdout.split())
    assert "compress_env" in brought
    assert brought & LATER == set()
