"""What being observed costs: rounds of unobserved, observed, unobserved, observed, ...

    python benches/observed.py --binary target/release/switchyard --rounds 9

Starts two clusters of the same program on this machine. One is let alone. The other exports its traces, by default those of a
hundredth of the requests, and its coordinator and workers are scraped every second. Eight connections ask one of them at a time;
the other one sleeps. The last line is the median, over the rounds, of observed tokens per second over unobserved.
"""

import argparse
import concurrent.futures
import http.client
import http.server
import json
import pathlib
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODEL = ROOT / "models/demo-flash"
KEY = "sk-sy-observed"
CONNECTIONS = 8


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Sink(http.server.BaseHTTPRequestHandler):
    """Takes exported traces and forgets them."""

    protocol_version = "HTTP/1.1"
    num_exports = 0

    def do_POST(self):
        Sink.num_exports += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Cluster:
    def __init__(self, options, folder, tracing, is_scraped):
        self.http, grpc = free_port(), free_port()
        self.ports, self.processes = [self.http], []
        arguments = ["--http", f"127.0.0.1:{self.http}", "--grpc", f"127.0.0.1:{grpc}", "--api-key", KEY]
        arguments += ["--model", MODEL, "--data", folder, "--log", "warn", *tracing]
        self.start(options, "coordinator", arguments)
        for _ in range(options.workers):
            arguments = ["--coordinator", f"http://127.0.0.1:{grpc}", "--model", MODEL, "--world-size", options.workers]
            arguments += ["--threads", options.threads, "--log", "warn", *tracing]
            if is_scraped:
                self.ports.append(free_port())
                arguments += ["--metrics", f"127.0.0.1:{self.ports[-1]}"]
            self.start(options, "worker", arguments)
        while not self.is_ready():
            time.sleep(0.1)

    def start(self, options, role, arguments):
        self.processes.append(subprocess.Popen([options.binary, role, *map(str, arguments)]))

    def is_ready(self):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.http}/health/ready", timeout=5).status == 200
        except (urllib.error.URLError, ConnectionError):
            return False

    def scrape(self, stop):
        while not stop.wait(1):
            for port in self.ports:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read()

    def stop(self):
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(60)


def client(cluster, index, until):
    """Tokens that one connection got."""
    connection = http.client.HTTPConnection("127.0.0.1", cluster.http, timeout=300)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    tokens = 0
    while time.monotonic() < until:
        body = {"model": MODEL.name, "max_tokens": 100, "ignore_eos": True, "seed": index, "thinking": {"type": "disabled"}}
        body["messages"] = [{"role": "user", "content": "Give me JSON with name Nora and age 31"}]
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
        assert response.status == 200, answer
        tokens += answer["usage"]["completion_tokens"]
    return tokens


def part(cluster, seconds, is_scraped):
    """Tokens per second."""
    stop = threading.Event()
    scraper = threading.Thread(target=cluster.scrape, args=(stop,))
    if is_scraped:
        scraper.start()
    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
        clients = [pool.submit(client, cluster, index, begin + seconds) for index in range(CONNECTIONS)]
    tokens = sum(done.result() for done in clients)
    elapsed = time.monotonic() - begin
    stop.set()
    if is_scraped:
        scraper.join()
    return tokens / elapsed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default=ROOT / "target/release/switchyard")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--ratio", help="share of the requests that are traced [default: the program's]")
    options = parser.parse_args()
    sink = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    tracing = ["--otlp-endpoint", f"http://127.0.0.1:{sink.server_port}", "--otlp-protocol", "http/protobuf"]
    tracing += ["--trace-sample-ratio", options.ratio] if options.ratio else []
    with tempfile.TemporaryDirectory() as alone_data, tempfile.TemporaryDirectory() as observed_data:
        alone = Cluster(options, alone_data, [], False)
        observed = Cluster(options, observed_data, tracing, True)
        ratios = []
        part(alone, 2, False), part(observed, 2, True)
        for number in range(options.rounds):
            parts = [(alone, False), (observed, True)]
            # Which one comes first changes, so that a machine that slows down does not speak for either.
            order = parts if number % 2 else parts[::-1]
            rates = {is_seen: part(cluster, options.seconds, is_seen) for cluster, is_seen in order}
            ratios.append(rates[True] / rates[False])
            print(f"alone {rates[False]:.0f} tok/s, observed {rates[True]:.0f}; {ratios[-1]:.3f}", flush=True)
        observed.stop(), alone.stop()
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"median ratio {statistics.median(ratios):.3f} ({spread}), {Sink.num_exports} exports of traces")


if __name__ == "__main__":
    main()
