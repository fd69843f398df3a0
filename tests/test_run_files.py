"""Each name of a file that we keep stands in one place."""

from __future__ import annotations

import ast
import pathlib

import lacy_jax
from lacy_jax import run_files

# Hugging Face's own names, which are ours too by coincidence; StableHLO exports take the tokenizer along; a template.
THEIRS = {("export", "config.json"), ("export", "tokenizer.model"), ("report", "report.html")}


def test_no_name_of_a_run_file_is_written_twice():
    names = {value for name, value in vars(run_files).items() if name.isupper() and "." in value}
    assert "metrics.jsonl" in names
    root = pathlib.Path(lacy_jax.__file__).parent
    twice = [
        f"{path.relative_to(root)}:{node.lineno}: {node.value}"
        for path in sorted(root.rglob("*.py"))
        if path.name != "run_files.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and node.value in names
        and (path.relative_to(root).parts[0], node.value) not in THEIRS
    ]
    assert twice == []
