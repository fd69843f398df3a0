"""Draws docs/images/*.svg from docs/results/*.json: `python docs/pictures.py`."""

from __future__ import annotations

import json
import math
import pathlib
import re

from lacy_jax.report import charts, figures

DOCS = pathlib.Path(__file__).resolve().parent
STYLE = """<style>
svg { background: #fff } text { fill: #5d6673; font: 11px system-ui, sans-serif } .name { font-weight: 600 }
.grid { stroke: #d5dae3 } .whisker { stroke: #1c2430 } .axis { stroke: #7a8599 } .curve { fill: none; stroke-width: 2 }
%s</style>"""
COLOURS = ("#5d6673", "#c8500a", "#00805f", "#a8437f", "#0072b2", "#7a6200")
SIZES = ("preset", "rows", "length")
LAST = re.compile(r'class="curve c(\d+)" points="(?:[^"]* )?([\d.]+),([\d.]+)"')


def quickstart() -> str:
    """Precision over the call budget; the names of the curves stand at their ends."""
    results = json.loads((DOCS / "results" / "quickstart.json").read_text())
    names = list(results["runs"])
    attributes, content = drawing(
        figures.budget_charts(results, {name: i for i, name in enumerate(names)})[0]
    )
    ends = "".join(
        f'<text class="name c{i}" x="{float(x) + (8 if float(x) < 100 else -8):.0f}" y="{float(y) - 7:.0f}" '
        f'text-anchor="{"start" if float(x) < 100 else "end"}">{names[int(i)]}</text>'
        for i, x, y in LAST.findall(content)
    )
    return file_of(attributes, content + ends)


def step_sizes() -> str:
    """Tokens per second over the three dimensions of benchmarks/step_sizes.py, side by side."""
    results = json.loads((DOCS / "results" / "step_sizes.json").read_text())
    points = results["points"]
    middle = max(points, key=lambda p: sum(p[a] == q[a] for q in points for a in SIZES))
    parts = []
    for column, (axis, label) in enumerate(
        zip(SIZES, ("million parameters", "rows of a batch", "tokens of a row"), strict=True)
    ):
        fixed = [name for name in SIZES if name != axis]
        chosen = sorted(
            (p for p in points if all(p[n] == middle[n] for n in fixed)),
            key=lambda p: (p["parameters"], p[axis]),
        )
        x = [p["parameters"] / 1e6 if axis == "preset" else p[axis] for p in chosen]
        curves = [
            charts.Series(name, x, [p[key] for p in chosen], style=style)
            for style, (name, key) in enumerate(
                (("PyTorch", "pytorch_tokens_per_s"), ("lacy_jax", "tokens_per_s"))
            )
        ]
        chart = charts.line_chart("", curves, x_label=label, y_label="tokens/s", from_zero=True)
        parts.append(f'<g transform="translate({column * charts.WIDTH} 16)">{drawing(chart)[1]}</g>')
    names = _named(["PyTorch", "lacy_jax"], 0, 60)
    size = f"0 0 {len(SIZES) * charts.WIDTH} {charts.HEIGHT + 16}"
    label = "Tokens per second of a train step over model size, batch and context"
    return file_of(f' viewBox="{size}" role="img" aria-label="{label}"', names + "".join(parts))


ASKED = {
    "before: fact": ("full", "old"),
    "deleted: fact": ("deleted", "old"),
    "changed: new": ("changed", "new"),
    "changed: old": ("changed", "old"),
    "CALL off: fact": ("alone", "old"),
}
"""Bars of the picture of experiments/forgetting.py: what is stated -> (condition, which value)."""


def forgetting() -> str:
    """What is stated of facts that are edited, by policy; and what a deletion radius takes from an index of spans."""
    results = json.loads((DOCS / "results" / "forgetting.json").read_text())
    bars = _edited({policy: results["cells"][policy] for policy in ("ntp", "loss", "lacy")})
    left = _bars_of(bars)
    curve = results["indexes"]["spans, encoder"]["curve"]
    radii = [row["radius"] for row in curve]
    names = {
        "efficacy": "the deleted fact",
        "same": "same person",
        "near": "other people",
    }
    lines = [
        charts.Series(name, radii, [row[key] for row in curve], style=style)
        for style, (key, name) in enumerate(names.items(), len(bars))
    ]
    right = charts.line_chart(
        "", lines, x_label="everything this like the question is deleted (cosine)", y_label="no longer answered",
        share=True, y_range=(0.0, 1.0),
    )  # fmt: skip
    parts = [
        _named([bar.name for bar in bars], 0, 120),
        _named(list(names.values()), len(bars), charts.WIDTH + 40),
        *(
            f'<g transform="translate({column * charts.WIDTH} 16)">{drawing(chart)[1]}</g>'
            for column, chart in enumerate((left, right))
        ),
    ]
    height = max(float(re.findall(r"[\d.]+", drawing(chart)[0])[3]) for chart in (left, right)) + 16
    label = "What is stated of edited facts, by policy, and what a deletion radius takes from an index"
    return file_of(
        f' viewBox="0 0 {2 * charts.WIDTH} {height:g}" role="img" aria-label="{label}"', "".join(parts)
    )


def growth() -> str:
    """Leads of lacy over ntp by size, for each length of training, and the plane fitted to them with its 95 % interval."""
    results = json.loads((DOCS / "results" / "growth.json").read_text())
    points, parts, names = results["points"], [], []
    for column, measure in enumerate(("FActScore unseen", "facts right")):
        curves, names = [], []
        for index, tokens in enumerate(sorted({point["tokens"] for point in points})):
            chosen = [i for i, point in enumerate(points) if point["tokens"] == tokens]
            x = [math.log10(points[i]["parameters"]) for i in chosen]
            fitted, low, high = zip(*(results["fits"][measure]["fitted"][i] for i in chosen), strict=True)
            lead = [points[i]["lead"][measure] for i in chosen]
            names += [f"{tokens / 1e6:.1f}M tokens", "fit"]
            curves.append(charts.Series(names[-2], x, lead, style=2 * index))
            curves.append(charts.Series("fit", x, fitted, low, high, style=2 * index + 1))
        chart = charts.line_chart(
            "", curves, x_label="log10 of parameters", y_label=f"lead, {measure}", share=True
        )
        parts.append(f'<g transform="translate({column * charts.WIDTH} 16)">{drawing(chart)[1]}</g>')
    size = f"0 0 {2 * charts.WIDTH} {charts.HEIGHT + 16}"
    label = "The lead of lacy over ntp with its best gate, by model size and length of training"
    return file_of(
        f' viewBox="{size}" role="img" aria-label="{label}"', _named(names, 0, 100) + "".join(parts)
    )


def forgetting_real() -> str:
    """What is stated of dates of real people that are edited, by policy and call rate."""
    results = json.loads((DOCS / "results" / "forgetting_real.json").read_text())
    runs = {policy: results["real"][policy] for policy in ("ntp", "loss", "lacy")}
    bars = _edited(runs | {"lacy, call rate 40 %": results["call rate 0.4"]["lacy"]})
    attributes, content = drawing(_bars_of(bars))
    width, height = map(float, re.findall(r"[\d.]+", attributes)[2:4])
    label = "What is stated of edited dates of real people, by policy"
    names = _named([bar.name for bar in bars], 0, 120)
    return file_of(
        f' viewBox="0 0 {width:g} {height + 16:g}" role="img" aria-label="{label}"',
        f'{names}<g transform="translate(0 16)">{content}</g>',
    )


def _edited(cells: dict[str, list[dict]]) -> list[charts.Series]:
    """For each policy the shares of `ASKED`, over its runs."""
    bars = []
    for style, (policy, runs) in enumerate(cells.items()):
        own = [[run["shares"][condition]["own"] for run in runs] for condition, _ in ASKED.values()]
        columns: list[list[float]] = [[], [], []]
        for (_, which), shares in zip(ASKED.values(), own, strict=True):
            columns[0].append(sum(share[which] for share in shares) / len(shares))
            for end, extreme in enumerate((min, max)):  # Of the intervals of all seeds.
                columns[1 + end].append(extreme(share[f"{which}_ci"][end] for share in shares))
        bars.append(charts.Series(policy, [], *columns, style=style))
    return bars


def _bars_of(bars: list[charts.Series]) -> object:
    return charts.bar_chart(
        "", list(ASKED), bars, value_label="of the edited facts, stated", value_range=(0.0, 1.0), share=True
    )


def _named(names: list[str], first: int, x: float) -> str:
    """Names of curves or bars in a line, each in its colour."""
    parts = []
    for style, name in enumerate(names, first):
        parts.append(f'<text class="name c{style}" x="{x:g}" y="12">{name}</text>')
        x += 7 * len(name) + 14
    return "".join(parts)


def drawing(chart: object) -> tuple[str, str]:
    """(attributes, content) of a chart's SVG."""
    found = re.search(r"<svg( viewBox.*?)>(.*?)</svg>", str(chart), re.DOTALL)
    if not found:
        raise SystemExit("there is nothing to draw")
    return found[1], found[2]


def file_of(attributes: str, content: str) -> str:
    """An SVG file of its own: style and names of its curves are in it, since no page gives them."""
    style = STYLE % "".join(
        f".c{i} {{ stroke: {c}; fill: {c} }} .curve.c{i} {{ fill: none }} .name.c{i} {{ stroke: none }}\n"
        for i, c in enumerate(COLOURS)
    )
    return f'<svg xmlns="http://www.w3.org/2000/svg"{attributes}>{style}{content}</svg>\n'


if __name__ == "__main__":
    for draw in (quickstart, step_sizes, forgetting, forgetting_real, growth):
        if (DOCS / "results" / f"{draw.__name__}.json").exists():
            (DOCS / "images" / f"{draw.__name__}.svg").write_text(draw())
