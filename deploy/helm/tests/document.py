#!/usr/bin/env python3
"""Writes the table of values in the chart's README from the comments of values.yaml."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

CHART = Path(__file__).resolve().parents[1] / "switchyard"
BEGIN, END = "<!-- values: begin -->\n", "<!-- values: end -->\n"


@dataclass
class Row:
    path: str
    default: str
    text: str


def rows():
    """Every value of values.yaml with the comment above it."""
    found, path, comment = [], [], []
    for line in (CHART / "values.yaml").read_text().splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            comment.append(stripped.lstrip("# "))
            continue
        match = re.match(r"^( *)([A-Za-z]+):(?: (.*))?$", line)
        if not match:
            comment = []
            continue
        depth = len(match[1]) // 2
        path = [*path[:depth], match[2]]
        found.append(Row(".".join(path), match[3] or "", " ".join(comment)))
        comment = []
    return [row for index, row in enumerate(found) if row.default or row.text or is_last(found, index)]


def is_last(found, index):
    return index + 1 == len(found) or not found[index + 1].path.startswith(found[index].path + ".")


def cell(text):
    return text.replace("|", "\\|")


def table():
    lines = ["| value | default | what it does |", "|---|---|---|"]
    for row in rows():
        default = f"`{cell(row.default)}`" if row.default else ""
        lines.append(f"| `{row.path}` | {default} | {cell(row.text)} |")
    return "\n".join(lines) + "\n"


def updated(readme):
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + table() + END + after


def is_current():
    readme = (CHART / "README.md").read_text()
    return updated(readme) == readme


if __name__ == "__main__":
    path = CHART / "README.md"
    path.write_text(updated(path.read_text()))
    print(f"{len(rows())} values", file=sys.stderr)
