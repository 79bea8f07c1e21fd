"""Draws dashboards as SVG: panels where their JSON puts them, with its titles, units and legends. Not Grafana's drawing."""

import html
import math

WIDTH, ROW = 1440, 30
COLUMN = WIDTH / 24
GAP = 8
PAPER, PANEL, EDGE, INK, FAINT = "#111217", "#181b1f", "#2c3235", "#d8d9da", "#8e9297"
COLOURS = ["#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#37872d", "#fade2a", "#c4162a"]
SIGNAL = {"pending": "#f2cc0c", "firing": "#f2495c"}
LEGEND_LINES_MAX = 3
# Seconds without a value after which a line is broken off.
HOLE = 3
BINARY = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def number(value, unit):
    """A value as people read it, in the unit that Grafana calls by this name."""
    if value is None or math.isnan(value):
        return "–"
    if unit == "bool_on_off":
        return "On" if value else "Off"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        for size, name in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return "0 s"
    if unit in ("bytes", "Bps"):
        suffix = "/s" if unit == "Bps" else ""
        for size, name in BINARY:
            if abs(value) >= size:
                return f"{value / size:.3g} {name}{suffix}"
        return f"{value:.3g} B{suffix}"
    suffix = " req/s" if unit == "reqps" else ""
    return f"{value / 1000:.3g} K{suffix}" if abs(value) >= 10_000 else f"{value:.3g}{suffix}"


def text(x, y, words, size=12, colour=INK, anchor="start", weight="normal"):
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" font-weight="{weight}">{html.escape(words)}</text>'


def box(x, y, width, height, colour, edge="none"):
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2" fill="{colour}" stroke="{edge}"/>'


def nice_ticks(low, high, count=4):
    """Round numbers between two bounds."""
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step)
    return [step * n for n in range(first, math.floor(high / step + 1e-9) + 1)]


def scale(low, high, unit):
    """Ticks that are round in the unit in which they are shown."""
    size = next((size for size, _ in BINARY if high >= size), 1) if unit in ("bytes", "Bps") else 1
    return [tick * size for tick in nice_ticks(low / size, high / size)]


class Plot:
    """The part of a panel in which time goes to the right."""

    def __init__(self, x, y, width, height, span):
        self.x, self.y, self.width, self.height = x, y, width, height
        self.start, self.end = span

    def at(self, time):
        return self.x + (time - self.start) / (self.end - self.start) * self.width

    def times(self):
        """Seconds since the beginning."""
        parts = []
        for second in nice_ticks(0, self.end - self.start, 5):
            x = self.at(self.start + second)
            parts.append(f'<path d="M{x:.1f} {self.y:.1f}v{self.height:.1f}" stroke="{EDGE}"/>')
            parts.append(text(x, self.y + self.height + 14, f"{second:.0f} s", 10, FAINT, "middle"))
        return parts

    def marks(self, marks):
        """Moments with a name, as dashed lines."""
        return [f'<path d="M{self.at(time):.1f} {self.y:.1f}v{self.height:.1f}" stroke="{INK}" stroke-dasharray="3 3" opacity="0.7"/>'
                for time, _ in marks]


def curves(area, series, unit, span, marks):
    x, y, width, height = area
    names = [name for name, _ in series]
    lines = min(LEGEND_LINES_MAX, len(names))
    plot = Plot(x + 62, y + 6, width - 74, height - 28 - 15 * lines, span)
    values = [value for _, points in series for _, value in points if not math.isnan(value)]
    low, high = min([0, *values]), max([0, *values])
    high = high * 1.08 if high > low else low + 1
    parts = plot.times() + plot.marks(marks)
    for tick in scale(low, high, unit):
        level = plot.y + plot.height * (1 - (tick - low) / (high - low))
        parts.append(f'<path d="M{plot.x:.1f} {level:.1f}h{plot.width:.1f}" stroke="{EDGE}"/>')
        parts.append(text(plot.x - 6, level + 4, number(tick, unit), 10, FAINT, "end"))
    for index, (name, points) in enumerate(series):
        path, last = [], -math.inf
        for time, value in points:
            if math.isnan(value):
                continue
            pen = "M" if time - last > HOLE else "L"
            last = time
            level = plot.y + plot.height * (1 - (value - low) / (high - low))
            path.append(f"{pen}{plot.at(time):.1f} {level:.1f}")
        colour = COLOURS[index % len(COLOURS)]
        parts.append(f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        place, column = index % lines, index // lines
        left, base = x + 14 + column * (width - 20) / max(1, math.ceil(len(names) / lines)), plot.y + plot.height + 30 + 15 * place
        parts.append(box(left, base - 5, 12, 3, colour))
        parts.append(text(left + 17, base, name[:44], 11))
    if not series:
        parts.append(text(x + width / 2, y + height / 2, "No data", 13, FAINT, "middle"))
    return parts


def bars(area, series, span, marks, colours=COLOURS):
    """For each series a line that is drawn while it has a value."""
    x, y, width, height = area
    plot = Plot(x + 210, y + 6, width - 224, height - 30, span)
    parts = plot.times()
    thick = plot.height / max(1, len(series))
    for index, (name, points) in enumerate(series):
        top = plot.y + index * thick
        parts.append(text(plot.x - 8, top + thick / 2 + 4, name[:34], 11, INK, "end"))
        for (time, value), (after, _) in zip(points, [*points[1:], (points[-1][0] + 1, 0)]):
            if value and after - time <= HOLE:
                colour = colours[name.rpartition(" ")[2]] if isinstance(colours, dict) else colours[index % len(colours)]
                parts.append(f'<rect x="{plot.at(time):.1f}" y="{top + 3:.1f}" width="{plot.at(min(after, plot.end)) - plot.at(time) + 0.6:.1f}" height="{thick - 6:.1f}" fill="{colour}"/>')
    return parts + plot.marks(marks)


def stat(area, series, unit):
    x, y, width, height = area
    if not series:
        return [text(x + width / 2, y + height / 2 + 6, "No data", 16, FAINT, "middle")]
    name, points = series[0]
    known = [value for _, value in points if not math.isnan(value)]
    words = number(known[-1] if known else None, unit)
    return [text(x + width / 2, y + height / 2 + 14, words, 36, COLOURS[0], "middle", "bold"), text(x + width / 2, y + height - 8, name, 11, FAINT, "middle")]


def panel(described, series, span, marks):
    """One panel of a dashboard's JSON with its data."""
    grid = described["gridPos"]
    x, y = grid["x"] * COLUMN + GAP / 2, grid["y"] * ROW + GAP / 2
    width, height = grid["w"] * COLUMN - GAP, grid["h"] * ROW - GAP
    if described["type"] == "row":
        return [text(x + 4, y + height / 2 + 5, f"⌄ {described['title']}", 14, INK, weight="bold")]
    unit = described.get("fieldConfig", {}).get("defaults", {}).get("unit", "short")
    area = (x, y + 24, width, height - 24)
    draw = {
        "timeseries": lambda: curves(area, series, unit, span, marks),
        "state-timeline": lambda: bars(area, series, span, marks),
        "stat": lambda: stat(area, series, unit),
    }[described["type"]]
    return [box(x, y, width, height, PANEL, EDGE), text(x + 10, y + 18, described["title"], 13, INK, weight="bold"), *draw()]


def dashboard(title, panels, alerts, span, marks):
    """A whole page: `panels` with their data, and below them the alerts that were not quiet. Returns the SVG and its height."""
    bottom = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p, _ in panels) * ROW
    body = [part for described, series in panels for part in panel(described, series, span, marks)]
    if alerts:
        height = 50 + 30 * len(alerts)
        body += [box(GAP / 2, bottom + GAP, WIDTH - GAP, height, PANEL, EDGE), text(14, bottom + 28, "Alerts (Prometheus' ALERTS; not part of the dashboard)", 13, INK, weight="bold")]
        body += bars((4, bottom + 30, WIDTH - GAP, height - 24), alerts, span, marks, SIGNAL)
        bottom += height + GAP
    head = [text(14, 24, title, 17, INK, weight="bold")]
    head += [text(WIDTH - 14, 24, "dashed: " + ", ".join(f"{what} at {time - span[0]:.0f} s" for time, what in marks), 12, FAINT, "end")]
    full = bottom + 44
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{full}" font-family="Inter, DejaVu Sans, sans-serif">'
    return svg + box(0, 0, WIDTH, full, PAPER) + "".join(head) + f'<g transform="translate(0 36)">{"".join(body)}</g></svg>', full
