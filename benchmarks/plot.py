"""Line charts as SVG, written by hand: a benchmark should not need a plotting library."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 300, 200
"""Of one panel, in pixels, with its labels."""
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 28, 34
COLUMNS = 3
COLOURS = ("#1f77b4", "#999999", "#d62728", "#2ca02c")


@dataclass(frozen=True)
class Line:
    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One chart: x is logarithmic, y begins at 0."""

    title: str
    lines: Sequence[Line]


def svg(title: str, panels: Sequence[Panel], columns: int = COLUMNS) -> str:
    """All panels beside and below each other, with one legend."""
    rows = math.ceil(len(panels) / columns)
    width, height = columns * WIDTH, rows * HEIGHT + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="18" font-size="14">{escape(title)}</text>',
    ]
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    for index, name in enumerate(names):
        x = 10 + 110 * index
        parts.append(f'<path d="M{x} 32h18" stroke="{colours[name]}" stroke-width="2"/>')
        parts.append(f'<text x="{x + 23}" y="36">{escape(name)}</text>')
    for index, panel in enumerate(panels):
        x, y = index % columns * WIDTH, 44 + index // columns * HEIGHT
        parts += [f'<g transform="translate({x} {y})">', *_panel(panel, colours), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, colours: dict[str, str]) -> list[str]:
    points = [point for line in panel.lines for point in line.points]
    low, high = (math.log10(pick(x for x, _ in points)) for pick in (min, max))
    top = nice_ceiling(max(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        share = (math.log10(x) - low) / (high - low) if high > low else 0.5
        return (
            round(LEFT + share * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM), 1),
        )

    parts = [f'<text x="{LEFT}" y="{TOP - 10}" font-size="12">{escape(panel.title)}</text>']
    for quarter in range(5):
        value = top * quarter / 4
        _, y = place(10**low, value)
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for power in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1):
        x, y = place(10**power, 0)
        parts.append(f'<path d="M{x} {TOP}V{y}" stroke="#e5e5e5"/>')
        parts.append(
            f'<text x="{x}" y="{y + 15}" text-anchor="middle">10<tspan dy="-4" font-size="8">'
            f"{power}</tspan></text>"
        )
    for line in panel.lines:
        places = [place(*point) for point in line.points]
        path = " ".join(f"{x},{y}" for x, y in places)
        colour = colours[line.name]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' for x, y in places]
    return parts


def nice_ceiling(value: float) -> float:
    """The smallest of 1, 2, 4, 8 times a power of ten that is not below `value`.

    >>> nice_ceiling(37), nice_ceiling(0.4), nice_ceiling(801)
    (40.0, 0.4, 1000.0)
    """
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    # A hair of tolerance: 0.4 / 0.1 is a little more than 4.
    return next(
        round(m * power, 12) for m in (1, 2, 4, 8, 10, 20) if m * power >= value * (1 - 1e-9)
    )
