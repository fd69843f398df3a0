"""Fills the tables of choices in docs/*.md and README.md from the registries: `python docs/tables.py`.

A table stands between `<!-- choices of FIELD -->` and `<!-- end -->`; the tests say when one is not as the registry has it.
"""

from __future__ import annotations

import pathlib
import re

from lacy_jax.registry import registry_of

_TABLE = re.compile(r"(<!-- choices of (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The text of a page with its tables as the registries are now."""
    return _TABLE.sub(lambda found: f"{found[1]}\n{registry_of(found[2]).markdown()}\n{found[3]}", text)


def tables_in(text: str) -> list[str]:
    """The fields that a page has tables of."""
    return [found[2] for found in _TABLE.finditer(text)]


def pages() -> list[pathlib.Path]:
    """README.md and docs/*.md."""
    root = pathlib.Path(__file__).resolve().parent.parent
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


if __name__ == "__main__":
    for page in pages():
        page.write_text(filled(page.read_text()))
