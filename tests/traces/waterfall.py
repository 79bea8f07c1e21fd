"""Draws one request's trace as a waterfall: starts a cluster, asks it something, and writes a picture.

    python tests/traces/waterfall.py docs/trace.png
"""

import pathlib
import sys
import tempfile

import matplotlib
from conftest import Cluster, Receiver
from test_traces import PHASES, traceparent

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

COLOURS = {"switchyard-coordinator": "#3b6ea5", "switchyard-worker": "#c9c9c9"}
PHASE_COLOURS = dict(zip(PHASES, ["#4c9f70", "#d98e04", "#8a5fbf", "#c8553d", "#2f9bbd"]))
QUESTION = "Repeat after me: " + "the quick brown fox jumps over the lazy dog. " * 16


def trace():
    with tempfile.TemporaryDirectory() as folder:
        sink = Receiver(folder)
        cluster = Cluster(pathlib.Path(folder), sink, "grpc")
        cluster.ask(QUESTION, max_tokens=4)
        name, _, header = traceparent()
        cluster.ask(QUESTION, header, max_tokens=16)
        spans = cluster.whole(name, "POST /v1/chat/completions")
        cluster.stop()
        sink.stop()
    return spans


def in_order(spans):
    """Each span before its children, these by their beginning; with how deep it lies."""
    ids = {span["id"] for span in spans}
    children = {}

    def order(span):
        told = span["attributes"]
        return told.get("switchyard.step", 0), told.get("switchyard.rank", 0), span["start"]

    for span in sorted(spans, key=order):
        children.setdefault(span["parent"] if span["parent"] in ids else None, []).append(span)

    def below(parent, depth):
        for span in children.get(parent, []):
            yield span, depth
            yield from below(span["id"], depth + 1)

    return list(below(None, 0))


def label(span, depth):
    told = span["attributes"]
    if span["name"] == "step":
        text = f"rank {told['switchyard.rank']}, step {told['switchyard.step']}"
    else:
        text = span["name"]
    return "   " * depth + text


def draw(spans, path):
    rows = in_order(spans)
    zero = min(span["start"] for span in spans)
    figure, axes = plt.subplots(figsize=(11, 0.6 + 0.19 * len(rows)))
    for row, (span, _) in enumerate(rows):
        start, length = (span["start"] - zero) / 1e6, (span["end"] - span["start"]) / 1e6
        axes.barh(row, length, left=start, height=0.7, color=COLOURS[span["service"]])
        for phase in PHASES:
            # A step's phases are sums over its layers, so they are drawn one after the other.
            part = span["attributes"].get(f"switchyard.step.{phase}_seconds", 0) * 1e3
            axes.barh(row, part, left=start, height=0.7, color=PHASE_COLOURS[phase])
            start += part
    axes.set_yticks(range(len(rows)), [label(*row) for row in rows], fontsize=7, ha="left")
    axes.yaxis.set_tick_params(pad=120, length=0)
    axes.invert_yaxis()
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.set_xlabel("milliseconds")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    swatches = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in [COLOURS["switchyard-coordinator"], *PHASE_COLOURS.values()]]
    axes.legend(swatches, ["coordinator", *PHASES], ncols=6, loc="lower center", bbox_to_anchor=(0.4, 1), frameon=False, fontsize=8)
    figure.savefig(path, dpi=90, bbox_inches="tight", pil_kwargs={"optimize": True})


if __name__ == "__main__":
    draw(trace(), sys.argv[1])
