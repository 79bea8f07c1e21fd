"""Metrics, dashboards and alerts against a real cluster and a real Prometheus."""

import json
import re
import subprocess

import pytest
from conftest import MODEL, ROOT, RULES, WORLD_SIZE, get, wait_for

DASHBOARDS = sorted((ROOT / "deploy/helm/switchyard/files/dashboards").glob("*.json"))
RUNBOOKS = ROOT / "docs/runbooks"
# What Grafana fills in.
VARIABLES = {"$__rate_interval": "10s", "$model": ".*"}


def queries():
    """Every query of every dashboard."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                expression = target["expr"]
                for name, value in VARIABLES.items():
                    expression = expression.replace(name, value)
                yield pytest.param(expression, id=f"{path.stem}/{panel['title']}/{target['refId']}")


@pytest.fixture(scope="session")
def busy(cluster, load, prometheus):
    """Until there are rates to speak of, of keys that are refused, too."""
    assert load.ask(0, key="sk-sy-wrong") == 401
    wait_for("traffic", lambda: len(load.statuses) >= 20)
    series = "switchyard_worker_steps_total"
    wait_for("a rate", lambda: len(prometheus.query(f"rate({series}[10s]) > 0")) == WORLD_SIZE)
    return prometheus


def test_the_names_and_types_are_what_prometheus_expects(cluster, busy):
    for port in cluster.metrics_ports():
        text = get(f"http://127.0.0.1:{port}/metrics")
        checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("expression", list(queries()))
def test_every_query_of_the_dashboards_has_an_answer(busy, expression):
    wait_for(f"an answer to {expression}", lambda: busy.query(expression), seconds=30)


def test_every_metric_of_the_rules_and_dashboards_exists(busy):
    known = {labels["__name__"] for labels, _ in busy.query('{__name__!=""}')}
    # There was no call over gRPC, and none over a limit of its key.
    known |= {"switchyard_grpc_requests_total", "switchyard_rate_limited_requests_total"}
    texts = [RULES.read_text(), *(str(query.values[0]) for query in queries())]
    named = {name for text in texts for name in re.findall(r"\b(?:switchyard_|gen_ai_server_)\w+", text)}
    assert named <= known, named - known


def test_the_rules_pass_their_unit_tests():
    checked = subprocess.run(["promtool", "test", "rules", ROOT / "tests/alerts/alerts.yaml"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_has_its_runbook():
    alerts = set(re.findall(r"alert: (\w+)", RULES.read_text()))
    assert {path.stem for path in RUNBOOKS.glob("Switchyard*.md")} == alerts
    for alert in alerts:
        assert f"docs/runbooks/{alert}.md" in RULES.read_text()


def test_a_killed_worker_is_named_by_an_alert_that_clears_and_costs_no_request(cluster, load, busy):
    assert busy.firing() == []
    process, port = cluster.workers[1]
    process.kill()
    alert = wait_for("the alert", lambda: busy.firing("SwitchyardWorkerFault"))[0]
    assert alert["model"] == MODEL.name
    assert alert["fault"] in ("worker_lost", "worker_silent", "step_failed")
    process.wait()
    cluster.add_worker(1, port)
    whole = f'switchyard_cluster_world_size == {WORLD_SIZE} and on (model) switchyard_cluster_phase{{phase="ready"}} == 1'
    wait_for("the worker's return", lambda: busy.query(whole))
    wait_for("the alert's end", lambda: not busy.firing("SwitchyardWorkerFault"))
    served = len(load.statuses)
    wait_for("traffic after the recovery", lambda: len(load.statuses) >= served + 8)
    assert set(load.statuses) == {200}, load.refusals[-3:]
    assert busy.firing() == []
