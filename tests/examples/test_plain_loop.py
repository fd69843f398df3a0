"""examples/plain_loop.py: a loop of one's own, with labels and loss of this package and nothing else of it."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

import pytest
import warm_python

_EXAMPLE = pathlib.Path(__file__).resolve().parents[2] / "examples" / "plain_loop.py"
_RUN = """
import json, runpy, sys
sys.argv = [{path!r}, *{arguments!r}]
runpy.run_path({path!r}, run_name="__main__")
print(json.dumps(sorted(name for name in sys.modules if name.split(".")[0] in ("orbax", "grain", "tensorflow_datasets", "torch"))))
"""


def run(*arguments: str) -> tuple[list[dict[str, float]], list[str]]:
    """(printed metrics, forbidden modules that were imported)."""
    code = _RUN.format(path=str(_EXAMPLE), arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], cwd=_EXAMPLE.parents[1], capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    *lines, imported = done.stdout.splitlines()
    return [{k: float(v) for k, v in re.findall(r"(\w+) ([\d.]+)", line)} for line in lines], json.loads(
        imported
    )


@pytest.mark.oldest
def test_it_trains_and_delegates_fifteen_percent():
    metrics, imported = run("--steps=50")
    assert imported == []
    first, last = metrics[0], metrics[-1]
    assert first["loss"] == pytest.approx(5.5, abs=0.3)  # ln 256 of bytes, ln 257 with CALL.
    assert last["loss"] < 0.6 * first["loss"]
    assert last["nll_learned"] < last["nll_called"]  # What is delegated is what is hard.
    assert last["realised_call_rate"] == 0.15
    assert 0.15 < last["factual_rate"] < 0.4


def test_it_reads_a_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(
        "Ada Lovelace was born in London on 10 December 1815. Žofie met her there in 1840.\n" * 20
    )
    done = warm_python.run([sys.executable, str(_EXAMPLE), str(path), "--steps=1"], timeout=300, check=True)
    assert float(re.search(r"factual_rate ([\d.]+)", done.stdout)[1]) > 0.1


def test_it_has_about_fifty_lines_of_code():
    lines = _EXAMPLE.read_text().split('"""', 2)[2].splitlines()
    code = [
        line
        for line in lines
        if line.strip() and not line.strip().startswith(("#", '"""', "import ", "from "))
    ]
    assert len(code) <= 55
