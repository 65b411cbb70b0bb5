"""Pages that are made from the packages: specifications of environments, rooms, public names.

Building the site writes them; `python docs/reference_pages.py` renews the table in `guide.md`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

__all__ = ["find_rooms", "modules_of", "public_page", "room_page", "rooms_table", "write_pages"]

PACKAGES = ("compress_env", "agents", "experiments")
PUBLIC = ("compress_env", "agents")
"""The packages whose names are for import; experiments are for running."""
SPECIFICATIONS = (
    *("PruningEnv", "QuantizationEnv"),
    *("LayerContext", "PotentialReward", "SeveralBudgets"),
)
"""Classes whose docstrings are sections of their own: the reference shows how they begin."""


def find_rooms(package: str) -> list[str]:
    """Return the dotted names of a package and of all packages in it, outermost first."""
    path = importlib.import_module(package).__path__
    inner = [f"{package}.{found.name}" for found in pkgutil.iter_modules(path) if found.ispkg]
    return [package, *(room for name in inner for room in find_rooms(name))]


def modules_of(room: str) -> list[str]:
    """Return the dotted names of the modules that lie in a room itself, to be run ones aside."""
    path = importlib.import_module(room).__path__
    names = [found.name for found in pkgutil.iter_modules(path) if not found.ispkg]
    return [f"{room}.{name}" for name in names if name != "__main__"]


def rooms_table() -> str:
    """Make the table of all rooms and their questions."""
    rooms = [room for package in PACKAGES for room in find_rooms(package)]
    asked = [
        (inspect.getdoc(importlib.import_module(room)) or "").splitlines()[0] for room in rooms
    ]
    rows = [
        f"| [`{room.replace('.', '/')}/`](../{room.replace('.', '/')}/__init__.py) | {question} |"
        for room, question in zip(rooms, asked, strict=True)
    ]
    return "\n".join(["| room | question |", "| --- | --- |", *rows])


def write_pages(docs: Path) -> None:
    """Write the pages into `generated/` and `reference/`; those that have not changed are kept.

    Args:
        docs: The folder of the site's sources.
    """
    environments = importlib.import_module("compress_env")
    pages = {
        f"generated/{name}.md": f"{inspect.getdoc(getattr(environments, name))}\n"
        for name in SPECIFICATIONS
    }
    for package in PUBLIC:
        pages[f"reference/{package}.md"] = public_page(package)
        for room in find_rooms(package):
            if modules_of(room):
                pages[f"reference/{room}.modules.md"] = room_page(room)
    for stale in {*docs.glob("reference/*.md")} - {docs / name for name in pages}:
        stale.unlink()
    for name, text in pages.items():
        path = docs / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def public_page(package: str) -> str:
    """Make the page of what `import PACKAGE` gives."""
    module = importlib.import_module(package)
    entries = [
        f".. auto{_kind(getattr(module, name))}:: {package}.{name}" for name in module.__all__
    ]
    return _page(package, module, [f".. py:module:: {package}", *entries])


def room_page(room: str) -> str:
    """Make the page of a room: its question, and every module in it.

    What a package passes on from one of its modules is described where it comes from, and what
    `public_page` describes is not described again.
    """
    entries = []
    for name in modules_of(room):
        module = importlib.import_module(name)
        hidden = [each for each in _exported(module) if not _belongs(module, each)]
        entries.append(f".. automodule:: {name}\n   :exclude-members: {', '.join(hidden)}")
    title = f"{room}, its own modules" if room in PUBLIC else room
    if room not in PUBLIC:
        entries.insert(0, f".. py:module:: {room}")
    return _page(title, importlib.import_module(room), entries)


def _page(title: str, module: ModuleType, entries: list[str]) -> str:
    blocks = [f"# {title}", inspect.getdoc(module) or ""]
    for entry in entries:
        directive, _, name = entry.splitlines()[0].partition(":: ")
        if directive != ".. py:module":
            blocks.append(f"## {name}")
        blocks.append(f"```{{eval-rst}}\n{entry}\n```")
    return "\n\n".join(blocks) + "\n"


def _kind(obj: object) -> str:
    return "class" if inspect.isclass(obj) else "function" if callable(obj) else "data"


def _exported(module: ModuleType) -> list[str]:
    return list(getattr(module, "__all__", ()))


def _belongs(module: ModuleType, name: str) -> bool:
    """Whether a name of a module is described with the module."""
    obj = getattr(module, name)
    home = str(getattr(obj, "__module__", ""))
    public = [getattr(importlib.import_module(p), each) for p in PUBLIC for each in _public(p)]
    elsewhere = home != module.__name__ and home.startswith(PUBLIC)
    return not (callable(obj) and (elsewhere or any(obj is each for each in public)))


def _public(package: str) -> list[str]:
    return _exported(importlib.import_module(package))


def main() -> None:
    """Renew the table of rooms in the guide."""
    path = Path(__file__).with_name("guide.md")
    text = path.read_text(encoding="utf-8")
    table = rooms_table()
    text = re.sub(r"\| room \|.*?\n\n", lambda _: f"{table}\n\n", text, flags=re.DOTALL)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
