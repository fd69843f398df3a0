"""The commands of docs/tutorial.md, as they stand there, in one process without the test devices."""

from __future__ import annotations

import json
import os
import pathlib
import re
import runpy
import shlex
import sys

import pytest
import warm_python

ROOT = pathlib.Path(__file__).resolve().parents[1]


def commands(page: str) -> list[list[str]]:
    """Command lines of a page's ```sh blocks, split as a shell splits them."""
    text = (ROOT / "docs" / page).read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


_RUN = """
import contextlib, io, json, sys
from lacy_jax import cli
said = {}
for _, verb, *arguments in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = cli.main([verb, *arguments])
    said[verb] = out.getvalue()
    if status:
        sys.exit(status)
print(json.dumps(said))
"""


def test_the_tutorial_runs_as_it_is_written(tmp_path):
    """In a process of its own: a laptop has one device, the tests simulate eight."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    lines = commands("tutorial.md")
    assert {program for program, *_ in lines} == {"lacy"}
    done = warm_python.run(
        [sys.executable, "-c", _RUN],
        input=json.dumps(lines),
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert list(said) == ["prepare", "inspect", "train", "evaluate", "generate", "report"]
    assert "[[" in said["generate"], "the partner has written something"
    assert "entropy" in said["evaluate"]
    page = (tmp_path / "runs" / "tutorial" / "report.html").read_text()
    assert "lacy" in page
    assert "ntp" in page


@pytest.mark.parametrize(
    "page", sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))
)
def test_links_of_a_page_lead_somewhere(page):
    """Relative links of the docs and of the README: files that exist."""
    file = ROOT / page
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", file.read_text()):
        assert (file.parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("name", ["quickstart", "step_sizes", "forgetting", "forgetting_real", "growth"])
def test_a_picture_is_that_of_its_results(name):
    draw = runpy.run_path(str(ROOT / "docs" / "pictures.py"))[name]
    assert draw() == (ROOT / "docs" / "images" / f"{name}.svg").read_text(), "run python docs/pictures.py"


def test_the_picture_of_step_sizes_has_every_point():
    """Of 4 sizes, 5 numbers of rows and 5 lengths, for each side; the one in the middle stands in all three."""
    points = json.loads((ROOT / "docs" / "results" / "step_sizes.json").read_text())["points"]
    draw = runpy.run_path(str(ROOT / "docs" / "pictures.py"))["step_sizes"]
    assert draw().count('class="marker') == 2 * (len(points) + 2)
