"""`lacy init`: an experiment to start from, copied from those in the package."""

from __future__ import annotations

import ast
import pathlib
import textwrap

from etils import epath

from lacy_jax import files
from lacy_jax.errors import ConfigError

TEMPLATES = {
    "quickstart": "quickstart",
    "wiki": "wiki_bios",
    "paper": "paper_334m",
    "continue": "continue_from_hf",
}
"""Name of a template -> file in `experiments/`."""


def experiments_folder() -> pathlib.Path:
    """The folder of the experiments: inside the package if it was installed from a wheel, else beside it."""
    package = pathlib.Path(__file__).resolve().parents[1]
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def write_template(directory: str, template: str) -> tuple[epath.Path, str]:
    """Write DIRECTORY/experiments/NAME.py; its docstring explains its use.

    Args:
      directory: created if it does not exist.
      template: a name in `TEMPLATES`.

    Returns:
      (path of the experiment, its docstring).

    Raises:
      ConfigError: there is no such template, or the file exists.
      LacyError: the file cannot be written.
    """
    if template not in TEMPLATES:
        raise ConfigError(f"--template={template}: expected one of {', '.join(TEMPLATES)}")
    text = (experiments_folder() / f"{TEMPLATES[template]}.py").read_text()
    path = epath.Path(directory) / "experiments" / f"{TEMPLATES[template]}.py"
    if path.exists():
        raise ConfigError(f"{path} exists and is not overwritten")
    files.write_text(path, text)
    return path, ast.get_docstring(ast.parse(text)) or ""


def next_steps(directory: str, path: epath.Path, docstring: str) -> str:
    """What `lacy init` prints."""
    return f"{path}\n\nIts docstring; run the commands in the folder {directory}:\n\n{textwrap.indent(docstring, '  ')}"
