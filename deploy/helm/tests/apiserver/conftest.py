"""The namespace of the tests, and the definitions of other people's resources."""

import time
from pathlib import Path

import pytest
import yaml
from api import NAMESPACE, Refused, api

import schemas  # Found once `api` is there.


@pytest.fixture(scope="session", autouse=True)
def namespace():
    api("/api/v1/namespaces", "POST", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})


@pytest.fixture(scope="session", autouse=True)
def custom_resources():
    """Installs every definition of a kind that the chart makes, and waits until the server serves it."""
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    made = []
    for folder in map(Path, schemas.CRDS):
        for path in (p for name in schemas.CUSTOM for p in folder.glob(f"*_{name}.yaml")):
            for document in yaml.load_all(path.read_text(), schemas.Loader):
                if document and document["kind"] == "CustomResourceDefinition":
                    api(definitions, "POST", document)
                    made.append(document["metadata"]["name"])
    assert len(made) >= len(schemas.CUSTOM), made
    deadline = time.monotonic() + 60
    while not all(is_established(definitions, name) for name in made):
        assert time.monotonic() < deadline, "a custom resource is not served"
        time.sleep(0.2)


def is_established(definitions, name):
    try:
        conditions = api(f"{definitions}/{name}").get("status", {}).get("conditions", [])
    except Refused:
        return False
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)
