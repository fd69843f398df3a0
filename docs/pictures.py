"""Draws docs/images/quickstart.svg from docs/results/quickstart.json: `python docs/pictures.py`."""

from __future__ import annotations

import json
import pathlib
import re

from lacy_jax.report import figures

DOCS = pathlib.Path(__file__).resolve().parent
STYLE = """<style>
svg { background: #fff } text { fill: #5d6673; font: 11px system-ui, sans-serif } .name { font-weight: 600 }
.grid { stroke: #d5dae3 } .axis { stroke: #7a8599 } .curve { fill: none; stroke-width: 2 }
%s</style>"""
COLOURS = ("#5d6673", "#c8500a", "#00805f", "#a8437f", "#0072b2")
LAST = re.compile(r'class="curve c(\d+)" points="(?:[^"]* )?([\d.]+),([\d.]+)"')


def picture() -> str:
    """The chart as an SVG file of its own: style and names of its curves are in it, since no page gives them."""
    results = json.loads((DOCS / "results" / "quickstart.json").read_text())
    names = list(results["runs"])
    chart = str(figures.budget_charts(results, {name: i for i, name in enumerate(names)})[0])
    found = re.search(r"<svg(.*?)>(.*?)</svg>", chart, re.DOTALL)
    if not found:
        raise SystemExit("quickstart.json has no figures by budget")
    style = STYLE % "".join(
        f".c{i} {{ stroke: {c}; fill: {c} }} .curve.c{i} {{ fill: none }} .name.c{i} {{ stroke: none }}\n"
        for i, c in enumerate(COLOURS)
    )
    ends = "".join(
        f'<text class="name c{i}" x="{float(x) + (8 if float(x) < 100 else -8):.0f}" y="{float(y) - 7:.0f}" '
        f'text-anchor="{"start" if float(x) < 100 else "end"}">{names[int(i)]}</text>'
        for i, x, y in LAST.findall(found[2])
    )
    return f'<svg xmlns="http://www.w3.org/2000/svg"{found[1]}>{style}{found[2]}{ends}</svg>\n'


if __name__ == "__main__":
    (DOCS / "images" / "quickstart.svg").write_text(picture())
