"""A cluster that exports traces, and what takes them: a receiver of our own, or a collector of OpenTelemetry's.

The collector is that of `collector/`; it is used when SWITCHYARD_OTELCOL names the program.
"""

import base64
import concurrent.futures
import http.server
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import grpc
import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))

from waiting import free_port, wait_for  # noqa: E402

BINARY = pathlib.Path(os.environ.get("SWITCHYARD_BIN", ROOT / "target/release/switchyard"))
COLLECTOR = os.environ.get("SWITCHYARD_OTELCOL")
MODEL = ROOT / "models/demo-flash"
KEY = "sk-sy-traces"
WORLD_SIZE = 4
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


def is_open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def plain(value):
    """An attribute's value."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def attributes(pairs):
    return {pair.key: plain(pair.value) for pair in pairs}


def spans_of(export):
    """The spans of an export, each with what is known of its process."""
    for resource in export.resource_spans:
        process = attributes(resource.resource.attributes)
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            yield {
                "service": process["service.name"],
                "pid": process["process.pid"],
                "trace": span.trace_id.hex(),
                "id": span.span_id.hex(),
                "parent": span.parent_span_id.hex(),
                "name": span.name,
                "kind": span.kind,
                "start": span.start_time_unix_nano,
                "end": span.end_time_unix_nano,
                "status": span.status.code,
                "attributes": attributes(span.attributes),
                "events": [(event.name, attributes(event.attributes)) for event in span.events],
            }


class Receiver:
    """Takes OTLP over gRPC and over HTTP."""

    def __init__(self, _folder):
        self.bodies = []
        self.grpc_port, self.http_port = free_port(), free_port()
        handler = grpc.unary_unary_rpc_method_handler(lambda body, _context: self.take(body))
        calls = {EXPORT.rsplit("/", 1)[1]: handler}
        self.grpc = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
        self.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(EXPORT.split("/")[1], calls),))
        self.grpc.add_insecure_port(f"127.0.0.1:{self.grpc_port}")
        self.grpc.start()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                known = self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf"
                answer = receiver.take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200 if known else 404)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", self.http_port), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def take(self, body):
        self.bodies.append(body)
        return b""

    def exports(self):
        return [service.ExportTraceServiceRequest.FromString(body) for body in self.bodies]

    def stop(self):
        self.grpc.stop(None)
        self.http.shutdown()


class Collector:
    """OpenTelemetry's own, which writes what it takes to a file."""

    def __init__(self, folder):
        self.grpc_port, self.http_port = free_port(), free_port()
        self.file = folder / "traces.json"
        protocols = {
            "grpc": {"endpoint": f"127.0.0.1:{self.grpc_port}"},
            "http": {"endpoint": f"127.0.0.1:{self.http_port}"},
        }
        config = {
            "receivers": {"otlp": {"protocols": protocols}},
            "exporters": {"file": {"path": str(self.file)}},
            "service": {
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["file"]}},
                "telemetry": {"metrics": {"level": "none"}},
            },
        }
        (folder / "collector.yaml").write_text(json.dumps(config))
        log = (folder / "collector.log").open("w")
        command = [COLLECTOR, f"--config={folder}/collector.yaml"]
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for("the collector", lambda: is_open(self.grpc_port) and is_open(self.http_port))

    def exports(self):
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return [json_format.ParseDict(self.with_base64(json.loads(line)), service.ExportTraceServiceRequest()) for line in lines]

    def with_base64(self, value):
        """OTLP's JSON has ids in hexadecimal, protobuf's in base64."""
        if isinstance(value, list):
            return [self.with_base64(item) for item in value]
        if not isinstance(value, dict):
            return value
        ids = ("traceId", "spanId", "parentSpanId")
        return {
            key: base64.b64encode(bytes.fromhex(item)).decode() if key in ids else self.with_base64(item)
            for key, item in value.items()
        }

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


class Cluster:
    """A coordinator and its workers, which send their traces to a sink."""

    def __init__(self, folder, sink, protocol):
        self.folder, self.sink = folder, sink
        self.http, self.grpc = free_port(), free_port()
        port = sink.grpc_port if protocol == "grpc" else sink.http_port
        self.tracing = ["--otlp-endpoint", f"http://127.0.0.1:{port}", "--otlp-protocol", protocol]
        arguments = ["--http", f"127.0.0.1:{self.http}", "--grpc", f"127.0.0.1:{self.grpc}", "--trace-sample-ratio", "0"]
        arguments += ["--model", MODEL, "--api-key", KEY, "--data", folder / "data"]
        self.processes = [self.start("coordinator", *arguments)]
        arguments = ["--coordinator", f"http://127.0.0.1:{self.grpc}", "--model", MODEL, "--world-size", WORLD_SIZE]
        for _ in range(WORLD_SIZE):
            self.processes.append(self.start("worker", "--threads", 1, *arguments))
        wait_for("ready", self.is_ready)

    def start(self, role, *arguments):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("SWITCHYARD_", "OTEL_"))}
        # Spans are sent in batches; a test need not wait for long.
        environment["OTEL_BSP_SCHEDULE_DELAY"] = "200"
        log = (self.folder / f"{role}-{time.monotonic_ns()}.log").open("w")
        command = [BINARY, role, *map(str, [*arguments, *self.tracing])]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/health/ready", timeout=5) as response:
                return response.status == 200
        except (urllib.error.URLError, ConnectionError):
            return False

    def ask(self, question, traceparent=None, **fields):
        body = {"model": MODEL.name, "max_tokens": 24, "temperature": 0.5, "seed": 7, "ignore_eos": True}
        body |= {"thinking": {"type": "disabled"}, "messages": [{"role": "user", "content": question}], **fields}
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        if traceparent:
            headers["traceparent"] = traceparent
        url = f"http://127.0.0.1:{self.http}/v1/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.load(response)

    def spans(self, trace):
        """The spans of a trace that have arrived."""
        spans = [span for export in self.sink.exports() for span in spans_of(export)]
        return [span for span in spans if span["trace"] == trace]

    def whole(self, trace, root):
        """The spans of a trace once that with this name is there, and so all that were sent before; and their children."""

        def complete():
            spans = self.spans(trace)
            ranks = {span["attributes"].get("switchyard.rank") for span in spans} - {None}
            return len(ranks) == WORLD_SIZE and any(span["name"] == root for span in spans) and spans

        wait_for(f"the trace {trace}", complete, seconds=30)
        # The other processes have sent theirs at the same pace.
        time.sleep(1)
        return self.spans(trace)

    def stop(self):
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(scope="session", params=["grpc", "http/protobuf"])
def cluster(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("traces")
    sink = (Collector if COLLECTOR else Receiver)(folder)
    running = Cluster(folder, sink, request.param)
    yield running
    running.stop()
    sink.stop()
