"""Charts as inline SVG, without images, scripts or external fonts.

Colours are CSS classes (`c0`, `c1`, ...), so that the page defines them for light and dark mode; every series also has
its own dash and marker, so that nothing depends on colour. Charts are drawn on a narrow canvas and scaled up, which
keeps their text readable at phone width. The output is a pure function of the data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup, escape

from lacy_jax.formatting import number, percent, short_percent

WIDTH, HEIGHT = 400, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 10, 8, 40
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2", "12 4", "6 2 1 2")
STYLES = len(_DASHES)
_MOST_POINTS = 240  # Longer curves are averaged down, because a chart of this width cannot show more.


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve or one kind of bar.

    Attributes:
      name: legend text.
      x, y: [n]; points that are None or not finite are left out.
      low, high: [n] ends of an interval per point, or empty.
      style: index of colour, dash and marker; a run has the same style on the whole page.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    style: int = 0


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    share: bool = False,
    x_share: bool = False,
    diagonal: bool = False,
    from_zero: bool = False,
    note: str = "",
) -> Markup:
    """Curves over x. Returns a `<figure>`, or nothing if no series has a point.

    Args:
      title, x_label, y_label, note: plain text; escaped here.
      y_range: fixed ends of the y axis; None = from the data.
      share, x_share: label the y or x axis in per cent; the x axis then starts at 0.
      diagonal: draw y = x, for calibration.
      from_zero: start the y axis at 0, for amounts.
    """
    kept = [points for points in map(_points, series) if len(points[1])]
    if not kept:
        return Markup("")
    xs = np.concatenate([x for _, x, _, _, _ in kept])
    ys = np.concatenate([np.concatenate([y, low, high]) for _, _, y, low, high in kept])
    if x_share:  # Show a budget of 0, and the whole range of a probability.
        xs = np.concatenate([xs, [0.0, 1.0] if diagonal else [0.0]])
    x_ticks = nice_ticks(float(xs.min()), float(xs.max()))
    y_low, y_high = y_range or (0.0 if from_zero else float(np.nanmin(ys)), float(np.nanmax(ys)))
    y_ticks = nice_ticks(y_low, y_high)
    if y_range is None:
        y_low, y_high = min(y_low, y_ticks[0]), max(y_high, y_ticks[-1])
    frame = _Frame(min(xs.min(), x_ticks[0]), max(xs.max(), x_ticks[-1]), y_low, y_high)
    parts = [frame.axes(x_ticks, y_ticks, x_label, y_label, percent_ticks(x_share), percent_ticks(share))]
    if diagonal:
        parts.append(_line(frame.at(0, 0), frame.at(1, 1), "grid strong"))
    for curve, x, y, low, high in kept:
        parts.append(_curve(frame, curve.style, x, y, low, high))
    show = percent if share else number
    summary = "; ".join(f"{c.name}: {show(float(y[0]))} to {show(float(y[-1]))}" for c, _, y, _, _ in kept)
    return _figure(title, parts, f"{title}. {summary}", [curve for curve, *_ in kept], note)


def bar_chart(
    title: str,
    rows: Sequence[str],
    series: Sequence[Series],
    *,
    value_label: str,
    value_range: tuple[float, float],
    share: bool = False,
    note: str = "",
    legend: bool = True,
) -> Markup:
    """Horizontal bars labelled with their values: one group per row, one bar per series with a value there.

    `Series.y[i]` belongs to `rows[i]`; `Series.x` is not used; rows without values are left out. Returns a `<figure>`,
    or nothing without values.
    """
    groups = [(row, [b for s in series if (b := _bar_of(s, i)) is not None]) for i, row in enumerate(rows)]
    groups = [group for group in groups if group[1]]
    if not groups:
        return Markup("")
    show = percent if share else "{:.3f}".format
    low, high = value_range
    left, right, bar, gap = 120, WIDTH - 60, 15, 9
    height = _TOP + sum(len(bars) * bar + gap for _, bars in groups) + 34
    span = (right - left) / (high - low)

    def place(value: float) -> float:
        return left + (min(max(value, low), high) - low) * span

    parts = []
    for tick in nice_ticks(low, high):
        if low <= tick <= high:
            parts.append(_line((place(tick), _TOP), (place(tick), height - 30), "grid"))
            parts.append(_text(place(tick), height - 18, percent_ticks(share)(tick), "middle"))
    parts.append(_text((left + right) / 2, height - 4, value_label, "middle"))
    y = float(_TOP)
    for row, bars in groups:
        parts.append(_text(left - 18, y + len(bars) * bar / 2 + 4, _shorten(row, 17), "end"))
        for s, value, interval in bars:
            if len(series) > 1:  # The legend's marker, so that a bar can be identified without its colour.
                parts.append(_marker(s.style, left - 9, y + bar / 2 - 0.5))
            parts.append(_bar(s.style, left, place(value), y + 1, bar - 3))
            end = place(value)
            if interval is not None:
                middle = y + 1 + (bar - 3) / 2
                parts.append(_line((place(interval[0]), middle), (place(interval[1]), middle), "whisker"))
                end = max(end, place(interval[1]))
            parts.append(_text(end + 4, y + bar - 4, show(value), "start", "value"))
            y += bar
        y += gap
    summary = "; ".join(
        f"{row}: " + ", ".join(f"{s.name} {show(v)}" for s, v, _ in bars) for row, bars in groups
    )
    used = [s for s in series if any(s is bar[0] for _, bars in groups for bar in bars)]
    return _figure(
        title, parts, f"{title}. {summary}", used if legend and len(series) > 1 else [], note, height
    )


def histogram_chart(title: str, edges: Sequence[float], counts: Sequence[Series], *, x_label: str) -> Markup:
    """Distributions of one quantity over common bins, each scaled to its own total.

    Args:
      edges: [bins + 1].
      counts: series with [bins] counts as `y`.
    """
    drawn = []
    for s in counts:
        total = sum(v or 0 for v in s.y)
        if total:
            steps = [(v or 0) / total for v in s.y]
            x = np.repeat(np.asarray(edges, float), 2)
            drawn.append(dataclasses.replace(s, x=x.tolist(), y=[0.0, *np.repeat(steps, 2).tolist(), 0.0]))
    return line_chart(title, drawn, x_label=x_label, y_label="share of tokens", share=True)


def parallel_chart(
    title: str, axes: Sequence[tuple[str, Sequence[str]]], lines: Sequence[Series], *, note: str = ""
) -> Markup:
    """Parallel coordinates: one line per series across upright axes. Returns a `<figure>`, or nothing without lines or axes.

    Args:
      axes: name, and texts of marks from bottom to top, evenly apart.
      lines: `y[i]` in [0, 1] is the height on axis i; None leaves the axis out. Series with one name share a legend entry.
    """
    if not lines or not axes:
        return Markup("")
    step = (WIDTH - _LEFT - 30) / max(len(axes) - 1, 1)
    top, bottom = _TOP + 22, HEIGHT - 14

    def place(axis: int, share: float) -> tuple[float, float]:
        return _LEFT + axis * step, bottom - share * (bottom - top)

    parts = []
    for line in lines:
        points = [place(i, y) for i, y in enumerate(line.y) if y is not None]
        path = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        parts.append(
            Markup('<polyline class="curve thin c{}" points="{}" stroke-dasharray="{}"/>').format(
                line.style % STYLES, path, _DASHES[line.style % STYLES] or "none"
            )
        )
    for i, (name, marks) in enumerate(axes):
        parts.append(_line(place(i, 0), place(i, 1), "axis"))
        parts.append(_text(place(i, 0)[0], _TOP + 8, _shorten(name, 16), "middle", "value"))
        for j, mark in enumerate(marks):
            x, y = place(i, j / max(len(marks) - 1, 1))
            parts.append(_text(x - 4, y + 4, mark, "end"))
    kinds = list({line.name: line for line in lines}.values())
    summary = "; ".join(
        f"{kind.name}: {sum(line.name == kind.name for line in lines)} lines" for kind in kinds
    )
    return _figure(title, parts, f"{title}. {summary}", kinds, note)


def nice_ticks(low: float, high: float) -> list[float]:
    """About five round numbers that cover [low, high]."""
    if not high > low:
        high, low = low + max(abs(low), 1.0) * 0.5, low - max(abs(low), 1.0) * 0.5
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def percent_ticks(share: bool) -> Callable[[float], str]:
    """The format of tick labels."""
    return short_percent if share else number


@dataclasses.dataclass(frozen=True)
class _Frame:
    """Data coordinates to canvas coordinates."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x_low) / ((self.x_high - self.x_low) or 1.0)
        up = (y - self.y_low) / ((self.y_high - self.y_low) or 1.0)
        up = min(max(up, 0.0), 1.0)
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)

    def axes(
        self,
        x_ticks: Sequence[float],
        y_ticks: Sequence[float],
        x_label: str,
        y_label: str,
        x_text: Callable[[float], str],
        y_text: Callable[[float], str],
    ) -> Markup:
        parts = []
        for tick in y_ticks:
            if self.y_low <= tick <= self.y_high:
                left, y = self.at(self.x_low, tick)
                parts += [
                    _line((left, y), (WIDTH - _RIGHT, y), "grid"),
                    _text(left - 5, y + 4, y_text(tick), "end"),
                ]
        for tick in x_ticks:
            if self.x_low <= tick <= self.x_high:
                x, bottom = self.at(tick, self.y_low)
                anchor = "end" if x > WIDTH - 24 else "middle"
                parts += [
                    _line((x, bottom), (x, bottom + 4), "axis"),
                    _text(x, bottom + 16, x_text(tick), anchor),
                ]
        corner = self.at(self.x_low, self.y_low)
        parts.append(_line(corner, (WIDTH - _RIGHT, corner[1]), "axis"))
        parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6, x_label, "middle"))
        middle = (_TOP + HEIGHT - _BOTTOM) / 2
        turn = Markup(' transform="rotate(-90 11 {})"').format(_n(middle))
        parts.append(_text(11, middle, y_label, "middle", extra=turn))
        return Markup("").join(parts)


def _points(series: Series) -> tuple[Series, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(series, x, y, low, high) without missing points, averaged down if long; low and high are nan without interval."""
    n = len(series.y)
    columns = [series.x, series.y, series.low or [None] * n, series.high or [None] * n]
    x, y, low, high = (np.array([v if _is_number(v) else np.nan for v in c], float) for c in columns)
    kept = np.isfinite(x) & np.isfinite(y)
    x, y, low, high = x[kept], y[kept], low[kept], high[kept]
    if len(x) > _MOST_POINTS:
        bins = np.arange(len(x)) * _MOST_POINTS // len(x)
        count = np.bincount(bins)
        x, y, low, high = (np.bincount(bins, values) / count for values in (x, y, low, high))
    return series, x, y, low, high


def _curve(
    frame: _Frame, style: int, x: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Markup:
    colour, dash = style % STYLES, _DASHES[style % STYLES]
    points = [frame.at(a, b) for a, b in zip(x, y, strict=True)]
    parts = []
    for (px, _), a, below, above in zip(points, x, low, high, strict=True):
        if np.isfinite(below) and np.isfinite(above):
            parts.append(
                _line((px, frame.at(a, below)[1]), (px, frame.at(a, above)[1]), f"whisker c{colour}")
            )
    path = " ".join(f"{_n(px)},{_n(py)}" for px, py in points)
    parts.append(
        Markup('<polyline class="curve c{}" points="{}" stroke-dasharray="{}"/>').format(
            colour, path, dash or "none"
        )
    )
    if len(points) <= 12:
        parts += [_marker(style, px, py) for px, py in points]
    return Markup("").join(parts)


def _marker(style: int, x: float, y: float) -> Markup:
    r = 3.6
    shapes = (
        f"M{_n(x - r)},{_n(y)}a{r},{r} 0 1,0 {2 * r},0a{r},{r} 0 1,0 {-2 * r},0z",
        f"M{_n(x - r)},{_n(y - r)}h{2 * r}v{2 * r}h{-2 * r}z",
        f"M{_n(x)},{_n(y - r - 1)}L{_n(x + r + 0.5)},{_n(y + r)}H{_n(x - r - 0.5)}z",
        f"M{_n(x)},{_n(y - r - 1)}L{_n(x + r + 1)},{_n(y)}L{_n(x)},{_n(y + r + 1)}L{_n(x - r - 1)},{_n(y)}z",
        f"M{_n(x)},{_n(y + r + 1)}L{_n(x + r + 0.5)},{_n(y - r)}H{_n(x - r - 0.5)}z",
        f"M{_n(x - r)},{_n(y - r)}l{2 * r},{2 * r}m0,{-2 * r}l{-2 * r},{2 * r}",
        f"M{_n(x - r)},{_n(y - r)}h{2 * r}v{2 * r}h{-2 * r}zm1.8,1.8h{2 * r - 3.6:g}v{2 * r - 3.6:g}h{3.6 - 2 * r:g}z",
        f"M{_n(x - r)},{_n(y - 1.5)}h{2 * r}v3h{-2 * r}z",
    )
    return Markup('<path class="marker c{}" d="{}"/>').format(style % STYLES, shapes[style % STYLES])


def _figure(
    title: str,
    parts: Sequence[Markup],
    summary: str,
    series: Sequence[Series],
    note: str,
    height: float = HEIGHT,
) -> Markup:
    legend = Markup("").join(
        Markup('<li><svg class="swatch" viewBox="0 0 34 12" aria-hidden="true">{}{}</svg>{}</li>').format(
            Markup('<line class="curve c{}" x1="1" y1="6" x2="33" y2="6" stroke-dasharray="{}"/>').format(
                s.style % STYLES, _DASHES[s.style % STYLES] or "none"
            ),
            _marker(s.style, 17, 6),
            s.name,
        )
        for s in series
    )
    drawing = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, _n(height), summary, Markup("").join(parts)
    )
    below = Markup('<ul class="legend">{}</ul>').format(legend) if legend else Markup("")
    if note:
        below += Markup('<p class="note">{}</p>').format(note)
    return Markup("<figure><figcaption>{}</figcaption>{}{}</figure>").format(title, drawing, below)


def _bar(style: int, left: float, right: float, top: float, height: float) -> Markup:
    return Markup('<rect class="bar c{}" x="{}" y="{}" width="{}" height="{}"/>').format(
        style % STYLES, _n(left), _n(top), _n(max(right - left, 0.5)), _n(height)
    )


def _line(a: tuple[float, float], b: tuple[float, float], kind: str) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, *map(_n, (*a, *b)))


def _text(x: float, y: float, text: str, anchor: str, kind: str = "", extra: Markup | str = "") -> Markup:
    named = Markup(' class="{}"').format(kind) if kind else ""
    return Markup('<text x="{}" y="{}" text-anchor="{}"{}{}>{}</text>').format(
        _n(x), _n(y), anchor, named, extra, escape(text)
    )


def _shorten(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _bar_of(series: Series, index: int) -> tuple[Series, float, tuple[float, float] | None] | None:
    """(series, value, interval) of one bar; None without a value."""
    value = series.y[index]
    if value is None or not math.isfinite(value):
        return None
    ends = [values[index] if index < len(values) else None for values in (series.low, series.high)]
    low, high = ends
    return series, value, None if low is None or high is None else (low, high)


def _is_number(value: object) -> bool:
    return (
        isinstance(value, (int, float, np.number))
        and not isinstance(value, bool)
        and math.isfinite(float(value))
    )


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
