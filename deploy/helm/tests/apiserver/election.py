"""Two coordinators of the chart, as processes, elect a leader in a real API server. Run by `deploy/helm/check-apiserver`."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest
from api import NAMESPACE, SERVER, api, helm
from chart import CHART, FEATURES, ROOT, container, load, merge, of_kind, ports, render
from test_program import free_port, get, wait_for

BIN = os.environ["SWITCHYARD_BIN"]
LEASE = "/apis/coordination.k8s.io/v1/namespaces/ns/leases/rel-switchyard"
LEASE_SECONDS, RENEW_SECONDS, RETRY_SECONDS = 15, 10, 2
KEY = "sk-sy-of-the-election"
VALUES = merge(load(next(path for path in FEATURES if path.stem == "standby")), {"worker": {"threads": 1}})
# What a step of a busy machine may take on top.
SLACK = 5


class Coordinator:
    """One of the coordinators, with the arguments of the chart and the rights of its service account."""

    def __init__(self, name, folder, grpc, kubeconfig):
        self.name, self.grpc = name, grpc
        (workload,) = of_kind(render(VALUES), "Deployment")
        self.http = free_port()
        listened = {"http": self.http, "grpc": grpc}
        here = {f"0.0.0.0:{number}": f"127.0.0.1:{listened[port]}" for port, number in ports(workload).items()}
        arguments = [here.get(argument, argument).replace("/usr/local/models", str(ROOT / "models")) for argument in container(workload)["args"]]
        environment = {e["name"]: e["value"] for e in container(workload)["env"] if "value" in e}
        environment |= {
            "SWITCHYARD_DATA": str(folder / name),
            "SWITCHYARD_DATABASE_URL": os.environ["SWITCHYARD_TEST_POSTGRES_URL"],
            "SWITCHYARD_FILE_STORE": str(folder / "files"),
            "SWITCHYARD_LEADER_ELECTION_IDENTITY": name,
            "SWITCHYARD_API_KEY": KEY,
            "KUBECONFIG": str(kubeconfig),
        }
        self.log = folder / f"{name}-{time.monotonic_ns()}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen([BIN, *arguments], env=environment, stderr=log, stdout=log, stdin=subprocess.DEVNULL)
        wait_for(f"{name} lives", lambda: self.get("/health/live")[0] == 200)

    def get(self, path):
        return get(f"http://127.0.0.1:{self.http}{path}")

    def status(self):
        """The word of its readiness."""
        found = re.search(r'"status":"([^"]*)"', self.get("/health/ready")[1])
        return found[1] if found else None

    def ask(self, **more):
        body = {"model": "demo-flash", "messages": [{"role": "user", "content": "What is the capital of France?"}], **more}
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}/v1/chat/completions", json.dumps(body).encode(), headers)
        return urllib.request.urlopen(request, timeout=60)

    def answers(self):
        with self.ask() as response:
            return "Paris" in json.load(response)["choices"][0]["message"]["content"]


class Service:
    """One address that leads to whoever of several accepts, as a name with several addresses does for who tries them all."""

    def __init__(self, backends):
        self.backends = backends
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            client, _ = self.listener.accept()
            for port in self.backends:
                try:
                    server = socket.create_connection(("127.0.0.1", port), timeout=5)
                except OSError:
                    continue
                server.settimeout(None)
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self.pipe, args=pair, daemon=True).start()
                break
            else:
                client.close()

    @staticmethod
    def pipe(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class Cluster:
    def __init__(self, folder):
        self.folder, self.coordinators, self.workers = folder, [], []
        self.names = {name: free_port() for name in ("one", "two")}
        # The standby's address comes first: it must refuse.
        self.service = Service(list(reversed(self.names.values())))
        self.kubeconfig = kubeconfig(folder)

    def start(self):
        folder = self.folder
        for name, port in self.names.items():
            self.coordinators.append(Coordinator(name, folder, port, self.kubeconfig))
        (workload,) = of_kind(render(VALUES), "StatefulSet")
        arguments = [a for a in container(workload)["args"]]
        for index in range(2):
            listened = {name: free_port() for name in ports(workload)}
            here = {f"0.0.0.0:{number}": f"127.0.0.1:{listened[name]}" for name, number in ports(workload).items()}
            here |= {"http://rel-switchyard-cluster:9090": f"http://127.0.0.1:{self.service.port}", "$(POD_IP)": "127.0.0.1"}
            chosen = [here.get(a, a).replace("/usr/local/models", str(ROOT / "models")) for a in arguments]
            environment = {e["name"]: e["value"] for e in container(workload)["env"] if "value" in e}
            with (folder / f"worker-{index}.log").open("w") as log:
                self.workers.append(subprocess.Popen([BIN, *chosen], env=environment, stderr=log, stdout=log, stdin=subprocess.DEVNULL))

    def restart(self, old):
        """What a kubelet does."""
        old.process.wait(60)
        new = Coordinator(old.name, self.folder, old.grpc, self.kubeconfig)
        self.coordinators[self.coordinators.index(old)] = new
        wait_for(f"{new.name} stands by", lambda: new.status() == "standby")
        return new

    def leader(self):
        """Leader and standby, once there is a leader that serves."""
        wait_for("a leader", lambda: any(c.status() == "ready" for c in self.coordinators))
        first, second = self.coordinators
        return (first, second) if first.status() == "ready" else (second, first)

    def stop(self):
        processes = [c.process for c in self.coordinators] + self.workers
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def kubeconfig(folder):
    """The service account's own token, as a pod has it."""
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/rel-switchyard/token"
    answer = api(path, "POST", {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}})
    (folder / "token").write_text(answer["status"]["token"])
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "pod",
        "clusters": [{"name": "here", "cluster": {"server": SERVER, "certificate-authority": os.environ["API_CA"]}}],
        "users": [{"name": "pod", "user": {"tokenFile": str(folder / "token")}}],
        "contexts": [{"name": "pod", "context": {"cluster": "here", "user": "pod", "namespace": NAMESPACE}}],
    }
    (folder / "kubeconfig").write_text(json.dumps(config))
    return folder / "kubeconfig"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    helm("install", "rel", str(CHART), values=VALUES)
    cluster = Cluster(tmp_path_factory.mktemp("election"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        helm("uninstall", "rel")


def ask_until_refused(coordinator, ends):
    """Notes the last line of each of its streams, until there are no more."""
    while True:
        try:
            with coordinator.ask(stream=True, ignore_eos=True, max_tokens=500, thinking={"type": "disabled"}) as stream:
                ends.append(stream.read().decode().rstrip().splitlines()[-1])
        except OSError:
            return


def timed(what, check):
    began = time.monotonic()
    wait_for(what, check)
    took = time.monotonic() - began
    print(f"{what}: {took:.1f} s")
    return took


def test_one_leads_and_serves_and_the_other_says_who(cluster):
    leader, standby = cluster.leader()
    assert leader.answers()
    holder = api(LEASE)["spec"]["holderIdentity"]
    assert holder.startswith(f"{leader.name}_")
    assert standby.get("/health/live")[0] == 200
    status, body = standby.get("/health/ready")
    assert status == 503 and json.loads(body)["leader"] == holder
    with pytest.raises(urllib.error.HTTPError) as refused:
        standby.ask()
    assert refused.value.code == 503 and refused.value.headers["Retry-After"] == "1"
    error = json.load(refused.value)["error"]
    assert error["code"] == "standby" and holder in error["message"]
    assert "switchyard_coordinator_leads 1" in leader.get("/metrics")[1]
    assert "switchyard_coordinator_leads 0" in standby.get("/metrics")[1]


def test_a_killed_leader_is_replaced_within_the_lease(cluster):
    leader, standby = cluster.leader()
    leader.process.kill()
    took = timed("after kill -9, the standby leads", lambda: api(LEASE)["spec"]["holderIdentity"].startswith(f"{standby.name}_"))
    assert took <= LEASE_SECONDS + RETRY_SECONDS + SLACK
    timed("then it serves", lambda: standby.status() == "ready")
    assert standby.answers()
    # They kept their weights, and looked for the next coordinator.
    assert all(worker.poll() is None for worker in cluster.workers)
    cluster.restart(leader)


def test_a_leader_that_is_stopped_hands_over_at_once(cluster):
    leader, standby = cluster.leader()
    leader.process.terminate()
    assert leader.process.wait(60) == 0
    took = timed("after the end of a stopped leader, the standby serves", lambda: standby.status() == "ready")
    assert took < LEASE_SECONDS
    assert standby.answers()
    assert all(worker.poll() is None for worker in cluster.workers)
    cluster.restart(leader)


def test_a_leader_without_the_server_stops_before_another_leads(cluster):
    leader, standby = cluster.leader()
    ends = []
    askers = [threading.Thread(target=ask_until_refused, args=(leader, ends)) for _ in range(2)]
    for asker in askers:
        asker.start()
    server = int(os.environ["API_SERVER_PID"])
    os.kill(server, signal.SIGSTOP)
    try:
        took = timed("without the API server, the leader stops", lambda: leader.process.poll() is not None)
        assert took <= RENEW_SECONDS + RETRY_SECONDS + SLACK
        assert leader.process.returncode == 75
        assert standby.status() == "standby"
    finally:
        os.kill(server, signal.SIGCONT)
    for asker in askers:
        asker.join(60)
    # Every stream has one of the two ends; those that were under way when the leader stopped have the second.
    assert all(end == "data: [DONE]" or '"error"' in end for end in ends), ends
    assert '"error"' in ends[-1], ends
    wait_for("the standby serves", lambda: standby.status() == "ready")
    assert standby.answers()
    cluster.restart(leader)
