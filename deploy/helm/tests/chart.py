"""Renders the chart, and finds things in what comes out."""

import copy
import functools
import json
import os
import subprocess
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "deploy/helm/switchyard"
PRESETS = sorted((ROOT / "deploy/helm/presets").glob("*.yaml"))
FEATURES = sorted((ROOT / "deploy/helm/tests/values").glob("*.yaml"))
HELM = os.environ.get("HELM", "helm")
RELEASE = "rel"


class Refused(Exception):
    """Helm did not render; the message is what it said."""


def load(path):
    return yaml.safe_load(path.read_text())


def merge(base, over):
    """As Helm lays one file of values over another."""
    merged = copy.deepcopy(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else copy.deepcopy(value)
    return merged


def render(values, chart=CHART, notes=False):
    """The objects of the chart with `values`, or with `notes` the whole text that an install shows."""
    return rendered(json.dumps(values), chart, notes)


@functools.cache
def rendered(values, chart, notes):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        # JSON is YAML.
        file.write(values)
        file.flush()
        command = [HELM, "template", RELEASE, str(chart), "--namespace", "ns", "--values", file.name]
        if notes:
            command = [HELM, "install", RELEASE, str(chart), "--namespace", "ns", "--values", file.name, "--dry-run=client"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Refused(done.stderr)
    if notes:
        return done.stdout
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [document for document in yaml.load_all(done.stdout, loader) if document]


def one(objects, kind, name):
    found = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} of {kind} {name} among {names(objects)}"
    return found[0]


def of_kind(objects, kind):
    return [o for o in objects if o["kind"] == kind]


def names(objects):
    return sorted(f"{o['kind']}/{o['metadata']['name']}" for o in objects)


def pod_template(workload):
    spec = workload["spec"]
    return spec["leaderWorkerTemplate"]["workerTemplate"] if workload["kind"] == "LeaderWorkerSet" else spec["template"]


def workloads(objects):
    return [o for o in objects if o["kind"] in ("Deployment", "StatefulSet", "LeaderWorkerSet")]


def container(workload):
    """The container that runs Switchyard."""
    return pod_template(workload)["spec"]["containers"][0]


def ports(workload):
    return {port["name"]: port["containerPort"] for port in container(workload)["ports"]}


def is_chosen(selector, workload):
    labels = pod_template(workload)["metadata"]["labels"]
    return all(labels.get(key) == value for key, value in selector.items())
