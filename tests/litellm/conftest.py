"""Starts one cluster with the demo model."""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

# The clients' tests know how to start a cluster.
spec = importlib.util.spec_from_file_location("cluster", ROOT / "tests/clients/conftest.py")
cluster = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cluster)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    running = cluster.Server(tmp_path_factory.mktemp("data"), "--workers", "1")
    yield running
    assert running.stop() == 0, running.output()
