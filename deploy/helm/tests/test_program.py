"""The program takes what the chart gives it: every flag exists, and the demo's own arguments make a cluster that serves."""

import json
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request

import grpc
import pytest
from chart import FEATURES, PRESETS, ROOT, container, load, merge, of_kind, pod_template, ports, render, workloads
from grpc_health.v1 import health_pb2, health_pb2_grpc

BIN = os.environ.get("SWITCHYARD_BIN", "")
DEMO = load(next(path for path in PRESETS if path.stem == "cpu-demo"))
ADMIN_KEY = "an-admin-key-of-the-tests"
# Longest time for the demo to be ready, in seconds, on a machine that is busy.
READY_WITHIN = 120


def help_of(command):
    return subprocess.run([BIN, command, "--help"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("path", PRESETS + FEATURES, ids=lambda path: path.stem)
def test_every_flag_and_variable_exists(path):
    for workload in workloads(render(load(path))):
        command, *arguments = container(workload)["args"]
        text = help_of(command)
        for flag in (argument for argument in arguments if argument.startswith("--")):
            assert re.search(rf"^\s+{flag}\b", text, re.M), f"`switchyard {command}` has no {flag}"
        for variable in container(workload)["env"]:
            if variable["name"].startswith(("SWITCHYARD_", "OTEL_")):
                assert f"[env: {variable['name']}" in text, f"`switchyard {command}` does not read {variable['name']}"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def wait_for(what, check):
    until = time.monotonic() + READY_WITHIN
    while time.monotonic() < until:
        if check():
            return
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {READY_WITHIN} s")


class Cluster:
    """The demo's pods as processes: their own arguments and environment, with this machine's addresses and folders."""

    def __init__(self, folder):
        values = merge(DEMO, {"adminKey": {"value": ADMIN_KEY}})
        objects = render(values)
        (self.coordinator,) = of_kind(objects, "Deployment")
        (self.workers,) = of_kind(objects, "StatefulSet")
        self.folder = folder
        (folder / "admin-key").write_text(ADMIN_KEY)
        self.processes = []
        self.ports = {name: free_port() for name in ports(self.coordinator)}
        self.start(self.coordinator, self.ports)
        self.worker_ports = []
        for _ in range(self.workers["spec"]["replicas"]):
            chosen = {name: free_port() for name in ports(self.workers)}
            self.worker_ports.append(chosen)
            self.start(self.workers, chosen)

    def start(self, workload, chosen):
        item = container(workload)
        here = {f"0.0.0.0:{number}": f"127.0.0.1:{chosen[name]}" for name, number in ports(workload).items()}
        here |= {
            "http://rel-switchyard-cluster:9090": f"http://127.0.0.1:{self.ports['grpc']}",
            "$(POD_IP)": "127.0.0.1",
            "/etc/switchyard/admin/admin-key": str(self.folder / "admin-key"),
        }
        arguments = [here.get(argument, argument).replace("/usr/local/models", str(ROOT / "models")) for argument in item["args"]]
        environment = {e["name"]: e["value"] for e in item["env"] if "value" in e}
        if "SWITCHYARD_DATA" in environment:
            environment["SWITCHYARD_DATA"] = str(self.folder / "data")
        log = (self.folder / f"{len(self.processes)}.log").open("wb")
        self.processes.append(subprocess.Popen([BIN, *arguments], env=environment, stderr=log, stdin=subprocess.DEVNULL))

    def probe(self, kind):
        check = container(self.coordinator)[kind]["httpGet"]
        return get(f"http://127.0.0.1:{self.ports[check['port']]}{check['path']}")[0]

    def stop(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(30)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        wait_for("the coordinator is ready", lambda: cluster.probe("readinessProbe") == 200)
        # The group does not wait for its spare.
        for chosen in cluster.worker_ports:
            metrics = f"http://127.0.0.1:{chosen['metrics']}/metrics"
            wait_for(f"{metrics}: registered", lambda: "switchyard_worker_registered 1" in get(metrics)[1])
        yield cluster
    finally:
        cluster.stop()


def test_the_coordinators_probes_answer(cluster):
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert cluster.probe(kind) == 200


def test_the_workers_probes_answer(cluster):
    for chosen in cluster.worker_ports:
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            # The port is a number in a gRPC probe; find whose it is.
            number = container(cluster.workers)[kind]["grpc"]["port"]
            (name,) = [n for n, p in ports(cluster.workers).items() if p == number]
            with grpc.insecure_channel(f"127.0.0.1:{chosen[name]}") as channel:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_metrics_are_where_the_monitors_look(cluster):
    status, text = get(f"http://127.0.0.1:{cluster.ports['http']}/metrics")
    assert status == 200 and "switchyard_" in text
    for chosen in cluster.worker_ports:
        status, text = get(f"http://127.0.0.1:{chosen['metrics']}/metrics")
        assert status == 200 and "switchyard_worker_registered 1" in text


def test_the_spare_is_registered_and_idle(cluster):
    epochs = []
    for chosen in cluster.worker_ports:
        text = get(f"http://127.0.0.1:{chosen['metrics']}/metrics")[1]
        found = re.search(r"^switchyard_worker_group_epoch (\d+)", text, re.M)
        epochs.append(int(found.group(1)) if found else 0)
    assert sorted(epochs)[0] == 0 and all(epoch > 0 for epoch in sorted(epochs)[1:])


def test_the_admin_api_is_on_its_own_port_only(cluster):
    def status(port):
        request = urllib.request.Request(f"http://127.0.0.1:{cluster.ports[port]}/admin/v1/keys", headers={"Authorization": f"Bearer {ADMIN_KEY}"})
        try:
            return urllib.request.urlopen(request, timeout=5).status
        except urllib.error.HTTPError as error:
            return error.code

    assert status("admin") == 200
    assert status("http") == 404


def test_a_key_made_beside_the_coordinator_gets_an_answer(cluster):
    """What NOTES.txt says to do: `kubectl exec` runs in the coordinator's environment."""
    environment = {e["name"]: e["value"] for e in container(cluster.coordinator)["env"] if "value" in e}
    environment["SWITCHYARD_DATA"] = str(cluster.folder / "data")
    key = subprocess.run([BIN, "keys", "create", "--name", "me"], env=environment, capture_output=True, text=True, check=True).stdout.strip()
    body = {"model": "demo-flash", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{cluster.ports['http']}/v1/chat/completions", json.dumps(body).encode(),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
    answer = json.load(urllib.request.urlopen(request, timeout=30))
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_a_stopped_coordinator_ends_within_its_grace_period(cluster):
    process = cluster.processes[0]
    began = time.monotonic()
    process.terminate()
    assert process.wait(60) == 0
    assert time.monotonic() - began < pod_template(cluster.coordinator)["spec"]["terminationGracePeriodSeconds"]
    # It asks its workers to go, which they do; their containers are then started anew.
    for worker in cluster.processes[1:]:
        assert worker.wait(30) == 0
