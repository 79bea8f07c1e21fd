"""Starts one `switchyard up` with the demo model for all client tests."""

import os
import pathlib
import re
import signal
import subprocess
import threading

import openai
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("SWITCHYARD_BIN", ROOT / "target/release/switchyard"))
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 40


class Server:
    """A running cluster: its address, its key, and what it wrote."""

    def __init__(self, data_dir, *arguments):
        command = [BINARY, "up", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
        command += ["--data", str(data_dir), *arguments]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SWITCHYARD_")}
        self.process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines = []
        self.is_ready = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        if not self.is_ready.wait(START_TIMEOUT_S) or self.process.poll() is not None:
            self.process.kill()
            raise RuntimeError("the server did not come up:\n" + self.output())
        self.base_url = self._field("HTTP")
        self.root_url = self.base_url.removesuffix("/v1")
        self.key = self._field("Key")
        self.model = self._field("Model").split()[0]

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            if "Ctrl-C stops" in line:
                self.is_ready.set()
        self.is_ready.set()

    def _field(self, name):
        match = re.search(rf"│ {name} +(\S.*?) +│", self.output())
        assert match, f"no {name} in:\n{self.output()}"
        return match.group(1)

    def output(self):
        return "".join(self.lines)

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(STOP_TIMEOUT_S)
        return self.process.returncode


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("data"))
    yield running
    assert running.stop() == 0, running.output()


@pytest.fixture(scope="session")
def client(server):
    return openai.OpenAI(base_url=server.base_url, api_key=server.key, max_retries=0, timeout=60)
