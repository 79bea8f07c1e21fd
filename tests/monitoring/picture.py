#!/usr/bin/env python3
"""Draws the dashboards over a load run in which a worker is killed, stays away and comes back.

    SWITCHYARD_BIN=target/debug/switchyard target/ci/venv/bin/python tests/monitoring/picture.py docs/monitoring

Needs Prometheus and Chromium. Rules and windows are shortened as in the tests, so that minutes become seconds.
"""

import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse

import drawing
from conftest import HASTE, Cluster, Load, Prometheus, ROOT, UNITS, get, wait_for

DASHBOARDS = sorted((ROOT / "deploy/helm/switchyard/files/dashboards").glob("*.json"))
RATE_INTERVAL = "8s"
# Seconds of load before the worker dies, without it, and after it is back.
BEFORE, AWAY, AFTER = 40, 65, 45
STEP = 1


def shorter(match):
    return f"[{max(4, round(int(match[1]) * UNITS[match[2]] / HASTE))}s]"


def expression(target):
    words = target["expr"].replace("$model", ".*")
    words = re.sub(r"\[(\d+)([smh])\]", shorter, words)
    return words.replace("$__rate_interval", RATE_INTERVAL)


def legend(form, labels):
    if not form or form == "__auto":
        return " ".join(f"{key}={value}" for key, value in labels.items() if key != "__name__") or "value"
    words = re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda name: labels.get(name[1], ""), form)
    # `or vector(0)` has no labels.
    return words.strip() or "none"


def history(prometheus, words, span):
    """Labels and points of a query over the whole run."""
    arguments = urllib.parse.urlencode({"query": words, "start": span[0], "end": span[1], "step": STEP})
    answer = json.loads(get(f"{prometheus.url}/api/v1/query_range?{arguments}"))
    for result in answer["data"]["result"]:
        yield result["metric"], [(float(at), float(value)) for at, value in result["values"]]


def data(prometheus, panel, span):
    series = []
    for target in panel.get("targets", []):
        for labels, points in history(prometheus, expression(target), span):
            points = [(at, math.nan if math.isinf(value) else value) for at, value in points]
            series.append((legend(target.get("legendFormat"), labels), points))
    return series


def alerts(prometheus, span):
    """One line for each alert and state, in the order in which they came."""
    found = []
    for labels, points in history(prometheus, "max by (alertname, alertstate) (ALERTS)", span):
        found.append((points[0][0], f"{labels['alertname'].removeprefix('Switchyard')} {labels['alertstate']}", points))
    return [(name, points) for _, name, points in sorted(found)]


def run(folder):
    """The load run. Returns Prometheus, the time it covers, and what happened when."""
    cluster = Cluster(folder)
    load = Load(cluster)
    marks = []
    try:
        prometheus = Prometheus(folder, cluster)
        wait_for("traffic", lambda: len(load.statuses) >= 8)
        begin = time.time()
        time.sleep(BEFORE)
        process, port = cluster.workers[1]
        process.kill()
        process.wait()
        marks.append((time.time(), "a worker is killed"))
        time.sleep(AWAY)
        cluster.add_worker(1, port)
        marks.append((time.time(), "started again"))
        time.sleep(AFTER)
        span = (begin, time.time())
        assert set(load.statuses) == {200}, load.refusals[-3:]
    finally:
        load.stop()
        cluster.stop()
    return prometheus, span, marks


def shoot(svg, height, target):
    with tempfile.TemporaryDirectory() as folder:
        page = pathlib.Path(folder, "page.html")
        page.write_text(f'<!doctype html><meta charset="utf-8"><style>body{{margin:0}}</style>{svg}')
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={target}"]
        subprocess.run([*command, f"--window-size={drawing.WIDTH},{height}", page.as_uri()], check=True, capture_output=True, timeout=120)


def main(target):
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        prometheus, span, marks = run(pathlib.Path(folder))
        try:
            for path in DASHBOARDS:
                described = json.loads(path.read_text())
                panels = [(panel, data(prometheus, panel, span)) for panel in described["panels"]]
                shown = alerts(prometheus, span) if path.stem.endswith("faults") else []
                svg, height = drawing.dashboard(described["title"], panels, shown, span, marks)
                picture = target / f"{path.stem.removeprefix('switchyard-')}.png"
                shoot(svg, height, picture.resolve())
                print(f"{picture}: {picture.stat().st_size // 1000} kB", file=sys.stderr)
        finally:
            prometheus.stop()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
