"""A cluster of separate processes under load, and a Prometheus that scrapes it."""

import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))

from waiting import free_port, wait_for  # noqa: E402

BINARY = pathlib.Path(os.environ.get("SWITCHYARD_BIN", ROOT / "target/release/switchyard"))
RULES = ROOT / "deploy/helm/switchyard/files/alerts/switchyard.yaml"
MODEL = ROOT / "models/demo-flash"
KEY = "sk-sy-monitoring"
WORLD_SIZE = 3
# Windows and waits of the rules are this many times shorter, so that an alert clears within a test's time.
HASTE = 15
UNITS = {"s": 1, "m": 60, "h": 3600}


def get(url):
    with urllib.request.urlopen(url, timeout=30) as response:
        return response.read().decode()


class Cluster:
    """A coordinator and its workers."""

    def __init__(self, folder):
        self.folder = folder
        self.http, self.grpc = free_port(), free_port()
        self.workers = {}
        arguments = ["--http", f"127.0.0.1:{self.http}", "--grpc", f"127.0.0.1:{self.grpc}"]
        arguments += ["--model", MODEL, "--api-key", KEY, "--data", folder / "data"]
        self.coordinator = self.start("coordinator", *arguments)
        for index in range(WORLD_SIZE):
            self.add_worker(index, free_port())
        wait_for("ready", self.is_ready)

    def start(self, role, *arguments):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SWITCHYARD_")}
        log = (self.folder / f"{role}-{time.monotonic_ns()}.log").open("w")
        return subprocess.Popen([BINARY, role, *map(str, arguments)], env=environment, stdout=log, stderr=log)

    def add_worker(self, index, port):
        arguments = ["--coordinator", f"http://127.0.0.1:{self.grpc}", "--model", MODEL, "--world-size", WORLD_SIZE]
        arguments += ["--threads", 1, "--metrics", f"127.0.0.1:{port}"]
        self.workers[index] = (self.start("worker", *arguments), port)

    def is_ready(self):
        try:
            return "ready" in get(f"http://127.0.0.1:{self.http}/health/ready")
        except (urllib.error.URLError, ConnectionError):
            return False

    def metrics_ports(self):
        return [self.http, *(port for _, port in self.workers.values())]

    def stop(self):
        for process, _ in self.workers.values():
            process.send_signal(signal.SIGTERM)
        self.coordinator.send_signal(signal.SIGTERM)
        for process in [self.coordinator, *(process for process, _ in self.workers.values())]:
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()


class Load:
    """Clients that ask without end."""

    def __init__(self, cluster):
        self.url = f"http://127.0.0.1:{cluster.http}/v1/chat/completions"
        self.stopped = threading.Event()
        self.statuses = []
        self.refusals = []
        self.pool = concurrent.futures.ThreadPoolExecutor(4)
        self.clients = [self.pool.submit(self.run, index) for index in range(4)]

    def ask(self, index, key=KEY):
        body = {"model": MODEL.name, "max_tokens": 48, "thinking": {"type": "disabled"}}
        body["messages"] = [{"role": "user", "content": "Give me JSON with name Nora and age 31"}]
        body |= {"ignore_eos": True} if index % 2 else {"response_format": {"type": "json_object"}}
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                json.load(response)
                return response.status
        except urllib.error.HTTPError as error:
            self.refusals.append(error.read().decode())
            return error.code

    def run(self, index):
        while not self.stopped.is_set():
            self.statuses.append(self.ask(index))

    def stop(self):
        self.stopped.set()
        for client in self.clients:
            client.result()


def hasty_rules():
    """The rules with shorter windows and waits."""

    def shorter(match):
        seconds = int(match[1]) * UNITS[match[2]] / HASTE
        return f"{max(4, round(seconds))}s"

    rules = yaml.safe_load(RULES.read_text())
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        rule["expr"] = re.sub(r"(?<=\[)(\d+)([smh])(?=\])", shorter, rule["expr"])
        if "for" in rule:
            rule["for"] = re.sub(r"^(\d+)([smh])$", shorter, rule["for"])
    return yaml.safe_dump(rules)


class Prometheus:
    """A server of its own with the project's rules."""

    def __init__(self, folder, cluster):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        (folder / "rules.yaml").write_text(hasty_rules())
        jobs = {"switchyard-coordinator": [cluster.http], "switchyard-worker": cluster.metrics_ports()[1:]}
        scrapes = [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
            for job, ports in jobs.items()
        ]
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": scrapes,
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        command = [shutil.which("prometheus"), f"--config.file={folder}/prometheus.yaml"]
        command += [f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address=127.0.0.1:{port}"]
        log = (folder / "prometheus.log").open("w")
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for("Prometheus", self.is_up)

    def is_up(self):
        try:
            # Before it is ready it answers, and says so with status 503.
            return get(f"{self.url}/-/ready")
        except (urllib.error.URLError, ConnectionError):
            return False

    def query(self, expression):
        """The samples of an instant query: [(labels, value)]."""
        arguments = urllib.parse.urlencode({"query": expression})
        try:
            answer = json.loads(get(f"{self.url}/api/v1/query?{arguments}"))
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from error
        return [(sample["metric"], float(sample["value"][1])) for sample in answer["data"]["result"]]

    def firing(self, alert=".*"):
        return [labels for labels, _ in self.query(f'ALERTS{{alertstate="firing", alertname=~"{alert}"}}')]

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    running = Cluster(tmp_path_factory.mktemp("cluster"))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def load(cluster):
    running = Load(cluster)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory, cluster):
    running = Prometheus(tmp_path_factory.mktemp("prometheus"), cluster)
    yield running
    running.stop()
