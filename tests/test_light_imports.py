"""`lacy_jax.objectives` and `lacy_jax.labels` serve other people's trainers: they import without the rest of the install."""

from __future__ import annotations

import configparser
import os
import pathlib
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

_ROOT = pathlib.Path(__file__).resolve().parents[1]
# What each may import of what setup.cfg asks for; everything else is as if it were not installed.
_ALLOWED = {
    "objectives": {"jax", "jaxtyping", "numpy", "ml-collections", "etils"},
    "labels": {
        "jaxtyping",
        "numpy",
        "ml-collections",
        "etils",
        "backports.zstd",
        "mwparserfromhell",
    },  # The last two read corpora.
}
_MODULES = {
    "orbax-checkpoint": "orbax",
    "tensorflow-datasets": "tensorflow_datasets",
    "protobuf": "google.protobuf",
}
_BLOCKED = """
import importlib, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if any(name == one or name.startswith(one + ".") for one in {blocked}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""
_USE = {
    "objectives": """
import lacy_jax.objectives as objectives
assert objectives.POLICIES["lacy"]
print("used")
""",
    "labels": """
from lacy_jax.corpus import Document
from lacy_jax.labels import RuleLabeller
text = "Ada Lovelace was born in London in 1815."
spans = RuleLabeller().label(Document("1", text)).factual
assert "1815" in [text[start:end] for start, end in spans], spans
print("used")
""",
}


@pytest.mark.oldest
@pytest.mark.parametrize("room", _ALLOWED)
def test_the_room_works_without_the_rest(room):
    parsed = configparser.ConfigParser()
    parsed.read(_ROOT / "setup.cfg")
    lists = [parsed["options"]["install_requires"], *parsed["options.extras_require"].values()]
    names = {Requirement(line).name for lines in lists for line in lines.split("\n") if line}
    blocked = {_MODULES.get(name, name.replace("-", "_")) for name in names - _ALLOWED[room] - {"lacy_jax"}}
    assert {"orbax", "grain", "tensorflow_datasets", "flax", "optax", "spacy", "torch"} <= blocked
    done = subprocess.run(
        [sys.executable, "-c", _BLOCKED.format(blocked=sorted(blocked)) + _USE[room]],
        cwd=_ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "used\n"


_IMPORT_ALL = """
import importlib, jax, pkgutil, lacy_jax
for module in pkgutil.walk_packages(lacy_jax.__path__, "lacy_jax."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
jax.config.update("jax_num_cpu_devices", 3)  # An error after the first computation.
print(jax.device_count())
"""


def test_no_module_computes_when_it_is_imported():
    """A process of a pod may compute only after it has joined its cluster, and `lacy plan` must not look for a TPU."""
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL], cwd=_ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3\n"
