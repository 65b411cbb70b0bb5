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
        "from compress_env.networks.models import build_model\n"
        "build_model('vgg8', 10, (1, 16, 16))\n"
        "print(*{'torchvision', 'timm'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    brought, libraries = done.stdout.split("\n")[:2]
    assert "compress_env" in brought.split()
    assert set(brought.split()) & LATER == set()
    assert libraries == ""  # the networks of the package need none of them
