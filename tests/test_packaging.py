"""What is packed: every module and data file, and metadata that say the same everywhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import compress_env

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = CONFIG["project"]
PACKAGES = ("compress_env", "agents", "experiments")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_of_a_package_is_packed(package: str) -> None:
    patterns = CONFIG["tool"]["setuptools"]["package-data"][package]
    data = {path for pattern in patterns for path in (ROOT / package).glob(pattern)}
    files = {path for path in (ROOT / package).rglob("*") if path.is_file()}
    files -= {path for path in files if "__pycache__" in path.parts}
    assert files - data == set((ROOT / package).rglob("*.py"))
    assert ROOT / package / "py.typed" in data
    assert all((path.parent / "__init__.py").exists() for path in files if path.suffix == ".py")


def test_the_source_distribution_has_tests_and_docs() -> None:
    manifest = (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()
    assert {"graft docs", "graft tests", "graft examples"} <= set(manifest)
    assert "include CHANGELOG.md CITATION.cff" in manifest


def test_version_title_and_licence_are_the_same_everywhere() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    cited = dict(re.findall(r"^([\w-]+): (.+)$", text, re.MULTILINE))
    assert cited["title"] == PROJECT["name"] == "compress-env"
    assert cited["version"] == PROJECT["version"] == compress_env.__version__
    assert cited["license"] == PROJECT["license"]
    assert re.findall(r"^  - name: (.+)$", text, re.MULTILINE) == ["The compress-env developers"]
    assert PROJECT["authors"] == [{"name": "The compress-env developers"}]
    assert "http" not in text and "urls" not in PROJECT


def test_pythons_are_those_that_dependencies_have() -> None:
    versions = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if ":: 3." in c]
    assert versions == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == ">=" + versions[0]
    assert CONFIG["tool"]["ruff"]["target-version"] == "py" + versions[0].replace(".", "")


def test_ci_builds_the_site_without_a_warning_and_runs_the_wheel_by_itself() -> None:
    steps = ("mypy", "sphinx-build --quiet --fail-on-warning", "python -m build", 'eval "$test')
    places = [CI.index(f"\n{step}") for step in steps]
    assert places == sorted(places)
    assert "--no-deps" in CI and '/bin/compress-env" "$option"' in CI
    assert "for option in --version --help" in CI
