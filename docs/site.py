"""Hook of MkDocs: one API page per room of the package, from its modules' docstrings."""

from __future__ import annotations

import ast
import pathlib

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).resolve().parent.parent


def rooms() -> dict[str, list[str]]:
    """Room -> its modules, dotted; modules that are no room stand under "lacy_jax"."""
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / "lacy_jax").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        room = parts[1] if len(parts) > 2 else "lacy_jax"
        if parts[-1] != "__init__" or len(parts) > 2:
            found.setdefault(room, []).append(".".join(parts).removesuffix(".__init__"))
    return found


def _has_public(module: str) -> bool:
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    kinds = (ast.FunctionDef, ast.ClassDef)
    return any(isinstance(n, kinds) and not n.name.startswith("_") for n in ast.parse(file.read_text()).body)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, and their places in the navigation."""
    pages = []
    for room, modules in rooms().items():
        text = f"# {room}\n\n" + "\n\n".join(f"::: {module}" for module in modules if _has_public(module))
        path = f"api/{room}.md"
        files.append(File.generated(config, path, content=text))
        pages.append({room: path})
    config.nav = [*config.nav, {"API": pages}] if config.nav else config.nav
    return files
