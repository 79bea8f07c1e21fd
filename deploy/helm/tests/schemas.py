"""Says whether an object is what Kubernetes takes: every field known, every type right."""

import functools
import json
import os
from pathlib import Path

import jsonschema
import kubernetes_validate
import referencing
import yaml

VERSION = "1.37"
# Folders of custom resources, one per name, as `deploy/helm/check` has fetched them.
CRDS = [Path(path) for path in os.environ.get("CRDS", "").split(":") if path]

# The only ones of them that the chart makes.
CUSTOM = ("httproutes", "servicemonitors", "podmonitors", "prometheusrules")

BUILT_IN = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"


def folder():
    found = sorted(BUILT_IN.glob(f"v{VERSION}*-local-strict"))
    assert found, f"no schemas of Kubernetes {VERSION} in {BUILT_IN}"
    return found[-1]


@functools.cache
def registry():
    path = folder() / "_definitions.json"
    resource = referencing.Resource.from_contents(json.loads(path.read_text()))
    return resource @ referencing.Registry()


@functools.cache
def built_in(kind, api_version):
    group, _, version = api_version.rpartition("/")
    name = f"{kind.lower()}-{group.split('.')[0]}-{version}" if group else f"{kind.lower()}-{version}"
    path = folder() / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML in which `=` is a text, as everybody but YAML 1.1 takes it."""


Loader.add_constructor("tag:yaml.org,2002:value", Loader.construct_scalar)


@functools.cache
def custom():
    """Schemas of the custom resources, by kind and version."""
    schemas = {}
    for path in (path for directory in CRDS for name in CUSTOM for path in directory.glob(f"*_{name}.yaml")):
        for document in yaml.load_all(path.read_text(), Loader):
            if not document or document.get("kind") != "CustomResourceDefinition":
                continue
            spec = document["spec"]
            for version in spec["versions"]:
                key = (spec["names"]["kind"], f"{spec['group']}/{version['name']}")
                schemas[key] = closed(version["schema"]["openAPIV3Schema"])
    return schemas


def closed(schema):
    """The schema with every field that it does not name refused, as a server with strict validation does."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not is_open and "type" in schema and schema["type"] == "object":
        # `metadata` is described as an object and nothing more.
        result["additionalProperties"] = False
    return result


def problems(obj):
    """What is wrong with an object. `None`: its kind is not known here."""
    kind, api_version = obj["kind"], obj["apiVersion"]
    schema = built_in(kind, api_version)
    if schema is not None:
        validator = jsonschema.Draft202012Validator(schema, registry=registry())
    elif (kind, api_version) in custom():
        validator = jsonschema.Draft202012Validator(custom()[kind, api_version])
    else:
        return None
    return [f"{kind} {obj['metadata']['name']}: {'/'.join(map(str, e.path))}: {e.message[:300]}" for e in validator.iter_errors(obj)]
