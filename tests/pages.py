"""The texts of the README and of the pages in `docs/`."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = ROOT / "docs"
PAGES = {
    path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8")
    for path in (*DOCS.glob("*.md"), *DOCS.glob("archive/*.md"))
}
