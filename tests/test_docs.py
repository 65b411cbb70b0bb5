"""The pages in `docs/` are complete: examples run, rooms and public names are all there."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import compress_env
from compress_env.networks import models
from docs.hooks import escape, link_modules, prepare_docstring
from docs.picture import draw_agents, kind_of, read_task
from docs.reference_pages import (
    PACKAGES,
    PUBLIC,
    SPECIFICATIONS,
    find_rooms,
    modules_of,
    public_page,
    room_page,
    rooms_table,
    write_pages,
)

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ROOMS = [room for package in PACKAGES for room in find_rooms(package)]
LIBRARY = [name for package in PUBLIC for room in find_rooms(package) for name in modules_of(room)]
EXAMPLES: dict[str, str] = dict(
    re.findall(
        r"^## ([^\n]*)\n(?:(?!^## ).)*?```python\n(.*?)```",
        (DOCS / "extending.md").read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
)


def test_something_of_each_kind_is_added() -> None:
    assert list(EXAMPLES) == ["A task", "A network", "An allocator", "An agent"]


@pytest.mark.parametrize("title", EXAMPLES)
def test_example_runs(title: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(tmp_path))
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    monkeypatch.setattr(models, "MODELS", dict(models.MODELS))
    monkeypatch.setattr(models, "RECIPES", dict(models.RECIPES))
    names: dict[str, Any] = {}
    exec(EXAMPLES[title], names)
    if title == "A task":
        assert (
            names["done"]
            and names["info"]["dense_macs"] <= 0.1 * names["env"].unwrapped.unpruned.macs
        )
    elif title == "A network":
        assert [layer.name for layer in names["env"].walk] == ["join", "head"]
        assert names["env"].skipped_layers == {}
    elif title == "An allocator":
        assert 0.0 < names["run"](names["env"], names["rates"].to_list()) <= 1.0
    else:
        agent = names["agent"]
        assert len(agent.best) == 8 and -1.0 < agent.best_return <= 0.0
        assert agent.predict(None, episode_start=[True])[0] is agent.best[0]


@pytest.mark.parametrize("room", ROOMS)
def test_room_asks_a_question(room: str) -> None:
    question = (importlib.import_module(room).__doc__ or "").splitlines()[0]
    assert "?" in question and question.endswith(("?", "."))


def test_table_of_rooms_is_that_of_the_packages() -> None:
    """`python docs/reference_pages.py` renews it."""
    assert rooms_table() in (DOCS / "guide.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["index.md", "guide.md"])
@pytest.mark.parametrize(
    "asked", ["the reward computed", "a channel removed", "How do I add a task"]
)
def test_places_are_one_click_from_the_top(page: str, asked: str) -> None:
    (row,) = (
        line for line in (DOCS / page).read_text(encoding="utf-8").splitlines() if asked in line
    )
    assert "](" in row


@pytest.mark.parametrize("name", LIBRARY)
def test_every_public_name_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    body = ast.parse(inspect.getsource(module)).body
    assigned, passed_on = {}, set[str]()
    for statement, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            assigned[ast.unparse(target)] = isinstance(after, ast.Expr)
        if isinstance(statement, ast.ImportFrom):
            passed_on |= {alias.asname or alias.name for alias in statement.names}
    for each in set(getattr(module, "__all__", ())) - passed_on:
        assert assigned.get(each, getattr(module, each).__doc__), f"{name}.{each}"


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_is_in_the_reference(package: str) -> None:
    page = public_page(package)
    module = importlib.import_module(package)
    given = [
        getattr(each, n) for each in map(importlib.import_module, PUBLIC) for n in each.__all__
    ]
    assert all(f":: {package}.{name}\n" in page for name in module.__all__)
    for room in find_rooms(package):
        page = room_page(room)
        for name in modules_of(room):
            hidden = re.search(
                rf"automodule:: {re.escape(name)}\n   :exclude-members: (.*)\n", page
            )
            assert hidden is not None
            own = importlib.import_module(name)
            for each in filter(None, hidden[1].split(", ")):
                obj = getattr(own, each)
                described = name == obj.__module__ or not obj.__module__.startswith(PUBLIC)
                assert not described or any(obj is other for other in given), f"{name}.{each}"


def test_pages_are_written_once_and_stale_ones_removed(tmp_path: Path) -> None:
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "gone.md").write_text("", encoding="utf-8")
    write_pages(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.md")}
    write_pages(tmp_path)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.md")}
    assert tmp_path / "reference" / "gone.md" not in times
    assert "## Observation" in (tmp_path / "generated" / "PruningEnv.md").read_text(
        encoding="utf-8"
    )


def test_environments_and_wrappers_are_specified(tmp_path: Path) -> None:
    given = [getattr(compress_env, name) for name in compress_env.__all__ if name != "compress"]
    classes = {e.__name__ for e in given if inspect.isclass(e) and issubclass(e, gym.Env)}
    assert set(SPECIFICATIONS) == classes >= {"PruningEnv", "PotentialReward"}
    page = (DOCS / "environments.md").read_text(encoding="utf-8")
    write_pages(tmp_path)
    for name in SPECIFICATIONS:
        assert f"## {name}\n\n```{{include}} generated/{name}.md\n" in page
        text = (tmp_path / "generated" / f"{name}.md").read_text(encoding="utf-8")
        assert "\n## " in text
        prepare_docstring(None, "class", f"compress_env.{name}", None, None, text.splitlines())


def test_docstrings_become_what_napoleon_reads() -> None:
    assert (
        escape("|W| of *shape, `a|b` and **(ours)**") == r"\|W\| of \*shape, `a|b` and **(ours)**"
    )
    lines = ["Tasks: in order, as :func:`make` takes them."]
    prepare_docstring(None, "data", "compress_env.suite.SUITE", None, None, lines)
    assert lines == ["\\", "Tasks: in order, as `make` takes them."]
    lines = ["First.", "", "## Observation", "A table."]
    prepare_docstring(None, "class", "compress_env.PruningEnv", None, None, lines)
    assert lines[:2] == ["First.", ""] and "environments" in lines[2] and len(lines) == 3


def test_links_to_files_become_links_to_modules() -> None:
    text = ["[`rewards.py`](../compress_env/task/rewards.py) [`a/`](../experiments/a/__init__.py)"]
    link_modules(None, "guide", text)
    assert text == ["{py:mod}`rewards.py <compress_env.task.rewards>` `a/`"]


def test_picture_is_that_of_the_stored_trials() -> None:
    command = "python docs/picture.py results/benchmark-v1 (\\S+) docs/agents.svg"
    for page in (ROOT / "README.md", DOCS / "development.md"):
        (task,) = re.findall(command, page.read_text(encoding="utf-8").replace("\n", " "))
    means = read_task(ROOT / "results" / "benchmark-v1", task)
    drawn = (DOCS / "agents.svg").read_text(encoding="utf-8")
    (axes,) = draw_agents(means, task).axes
    ticks = [tick.get_text() for tick in axes.get_yticklabels()]
    assert task in drawn and {"kl_curve", "cma_es", "q_critic_ppo+kl_curve"} < set(ticks)
    assert [drawn.index(f">{label}<") for label in ticks] == sorted(
        drawn.index(f">{label}<") for label in ticks
    )
    lower = set(means.index) - set(ticks)
    assert lower and all(name in axes.get_xlabel() for name in lower)
    assert means.loc[sorted(lower)].max(axis=None) < means.loc["uniform"].max()
    dots = np.concatenate([line.get_xydata() for line in axes.lines]).tolist()
    assert [means.loc["cma_es", 30], ticks.index("cma_es")] in dots
    assert means.loc["cma_es"].notna().all() and means.loc["greedy"].notna().sum() == 1
    names = ("ppo", "ppo+kl_curve", "random", "tpe+kl_curve", "greedy")
    assert [kind_of(agent) for agent in names] == [
        "learns",
        "learns",
        "searches",
        "searches",
        "rule",
    ]
    with pytest.raises(ValueError, match="no trial of Nothing-v1"):
        read_task(ROOT / "results" / "benchmark-v1", "Nothing-v1")
