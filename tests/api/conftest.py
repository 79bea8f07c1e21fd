"""Starts one cluster with the demo model."""

import importlib.util
import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "models/demo-flash"
# Tokens. Requests that leave out how long an answer may be are answered up to here.
CONTEXT_LENGTH = 1024

# The clients' tests know how to start a cluster.
spec = importlib.util.spec_from_file_location("cluster", ROOT / "tests/clients/conftest.py")
cluster = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cluster)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    model = tmp_path_factory.mktemp("models") / DEMO.name
    model.mkdir()
    for file in DEMO.iterdir():
        (model / file.name).symlink_to(file)
    config = json.loads((DEMO / "config.json").read_text()) | {"max_position_embeddings": CONTEXT_LENGTH}
    (model / "config.json").unlink()
    (model / "config.json").write_text(json.dumps(config))
    running = cluster.Server(tmp_path_factory.mktemp("data"), "--workers", "1", "--model", model)
    yield running
    assert running.stop() == 0, running.output()
