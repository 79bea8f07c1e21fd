"""Every value is described, checked, and has an effect."""

import copy
import json

import document
import pytest
import yaml
from chart import CHART, FEATURES, PRESETS, Refused, load, merge, render

DEFAULTS = load(CHART / "values.yaml")
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DEMO = load(next(path for path in PRESETS if path.stem == "cpu-demo"))
STANDBY = load(next(path for path in FEATURES if path.stem == "standby"))
EVERYTHING = merge(DEFAULTS, load(next(path for path in FEATURES if path.stem == "everything")))


def resolve(schema):
    while "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
    return schema


def leaves(schema, path=()):
    """Paths of all values, into maps of ours and not into those that are Kubernetes'."""
    schema = resolve(schema)
    properties = schema.get("properties")
    if not properties:
        yield path, schema
        return
    for key, part in properties.items():
        yield from leaves(part, (*path, key))


def get(values, path):
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def put(values, path, value):
    changed = copy.deepcopy(values)
    place = changed
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = value
    return changed


# Paths whose values need a special other value, or a special ground.
OTHER = {
    ("worker", "kind"): "LeaderWorkerSet",
    ("database", "value"): "postgres://u:p@h/d",
    ("tracing", "endpoint"): "http://elsewhere:4317",
    ("httpRoute", "requestTimeout"): "5m",
    ("worker", "podDisruptionBudget", "maxUnavailable"): 3,
    ("worker", "kernelCache"): {"emptyDir": {"sizeLimit": "1Gi"}},
    ("worker", "resources", "requests"): {"cpu": "3"},
    ("worker", "resources", "limits"): {"cpu": "3"},
    ("coordinator", "resources", "requests"): {"cpu": "3"},
    ("coordinator", "resources", "limits"): {"cpu": "3"},
    ("commonLabels",): {"other": "label"},
    ("extraObjects",): [],
    ("worker", "gpuResource"): "amd.com/gpu",
    ("coordinator", "startupSeconds"): 600,
    ("coordinator", "replicas"): 3,
    ("coordinator", "leaderElection", "renewSeconds"): 11,
    ("coordinator", "leaderElection", "retrySeconds"): 3,
    ("coordinator", "liveness", "seconds"): 600,
    ("coordinator", "progressDeadlineSeconds"): 7200,
    ("worker", "startupSeconds"): 60,
    ("worker", "livenessSeconds"): 600,
}
WITHOUT = {
    # A Secret of one's own wins over the text, a claim of one's own over a size, a digest over a tag.
    ("adminKey", "value"): {"adminKey": {"existingSecret": ""}},
    ("database", "value"): {"database": {"existingSecret": ""}},
}
# Has an effect only when its neighbour is set.
WITH = {
    ("apiKey", "existingSecret"): {"apiKey": {"value": ""}},
}
# Have an effect only when there are several coordinators.
ELECTION = {("coordinator", "replicas"), ("coordinator", "leaderElection"), ("networkPolicy", "apiServer")}
NOT_OURS = {("global",), ("models",), ("monitoring", "prometheusRule", "enabled"), ("monitoring", "prometheusRule", "labels"),
            ("monitoring", "dashboards", "enabled"), ("monitoring", "dashboards", "labels"),
            ("monitoring", "dashboards", "annotations")}


def other(path, schema, value):
    """A value that is allowed and is not the present one."""
    if path in OTHER:
        return OTHER[path]
    if "enum" in schema:
        return next(choice for choice in schema["enum"] if choice != value)
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds or []
    if "boolean" in kinds:
        return not value
    if "integer" in kinds:
        return (value or 0) + 7
    if "object" in kinds:
        return {**(value or {}), "another": "one"}
    if "array" in kinds:
        item = resolve(schema["items"])
        return [*(value or []), "/other" if "pattern" in item else "other" if item.get("type") == "string" else {"another": "one"}]
    pattern = schema.get("pattern", "")
    if "sha256" in pattern:
        return "sha256:" + "0" * 64
    if "KMGTPE" in pattern:
        return "77Gi"
    if "ms|s|m" in pattern:
        return "77s"
    return "another-one-of-16"


LEAVES = [(path, schema) for path, schema in leaves(SCHEMA) if path not in NOT_OURS]
MODEL_LEAVES = [(path, schema) for path, schema in leaves(SCHEMA["definitions"]["model"]) if path[0] not in ("worker", "coordinatorSource", "source")]


@pytest.mark.parametrize(("path", "schema"), LEAVES, ids=lambda value: ".".join(value) if isinstance(value, tuple) else "")
def test_every_value_has_an_effect(path, schema):
    ground = merge(EVERYTHING, {**WITHOUT.get(path, {}), **WITH.get(path, {})})
    if path[:2] == ("coordinator", "persistence"):
        ground = merge(ground, {"coordinator": {"persistence": {"existingClaim": "", "enabled": True}}})
    if path[:2] in ELECTION:
        ground = merge(DEFAULTS, STANDBY)
    before = render(ground)
    after = render(put(ground, path, other(path, schema, get(ground, path))))
    assert before != after, f"{'.'.join(path)} has no effect"


@pytest.mark.parametrize(("path", "schema"), MODEL_LEAVES, ids=lambda value: ".".join(value) if isinstance(value, tuple) else "")
def test_every_field_of_a_model_has_an_effect(path, schema):
    path = ("models", "flash", *path)
    before = render(EVERYTHING)
    value = other(path, schema, get(EVERYTHING, path))
    assert before != render(put(EVERYTHING, path, value)), f"{'.'.join(path)} has no effect"


def test_what_a_model_says_of_its_workers_wins():
    values = merge(DEMO, {"models": {"demo-flash": {"worker": {"threads": 5, "nodeSelector": {"a": "b"}}}}})
    text = json.dumps(render(values))
    assert '"--threads", "5"' in text and '"nodeSelector": {"a": "b"}' in text


def paths_of(values, path=()):
    for key, value in values.items():
        here = (*path, key)
        yield here
        if isinstance(value, dict):
            yield from paths_of(value, here)


def test_defaults_and_schema_have_the_same_names():
    known = {path for path, _ in leaves(SCHEMA)}
    inner = {path[:length] for path in known for length in range(1, len(path))}
    listed = set(paths_of(DEFAULTS))
    free = [path for path in known if resolve_path(path).get("type") == "object"]
    listed = {path for path in listed if not any(path[: len(f)] == f and len(path) > len(f) for f in free)}
    assert listed | {("global",)} == known | inner


def resolve_path(path):
    schema = SCHEMA
    for key in path:
        schema = resolve(schema)["properties"][key]
    return resolve(schema)


def test_nothing_of_ours_takes_unknown_names():
    def walk(schema, path):
        if isinstance(schema, dict):
            if "properties" in schema:
                assert schema.get("additionalProperties") is False, path
            for key, value in schema.items():
                walk(value, (*path, key))
        elif isinstance(schema, list):
            for value in schema:
                walk(value, path)

    walk(SCHEMA, ())


REFUSED = [
    ({"coordinater": {}}, "coordinater"),
    ({"coordinator": {"replicas": 0}}, "replicas"),
    ({"coordinator": {"replicas": 2}}, "needs database.existingSecret"),
    ({"coordinator": {"replicas": 2, "persistence": {"enabled": True}}, "database": {"existingSecret": "x"}}, "coordinator.persistence.enabled=false"),
    ({"coordinator": {"replicas": 2}, "database": {"existingSecret": "x"}}, "SWITCHYARD_FILE_STORE"),
    ({"coordinator": {"replicas": 2, "persistence": {"existingClaim": "c"}, "podDisruptionBudget": {"enabled": True}},
      "database": {"existingSecret": "x"}}, "podDisruptionBudget"),
    ({"coordinator": {"leaderElection": {"renewSeconds": 15}}}, "coordinator.leaderElection"),
    ({"models": {"demo-flash": {"worldsize": 3}}}, "worldsize"),
    ({"models": {"demo-flash": {"worldSize": 0}}}, "worldSize"),
    ({"models": {"demo-flash": {"source": {"pvc": {"claimName": "x"}}}}}, "source"),
    ({"models": {"Demo": {"worldSize": 1, "device": "cpu", "source": {"builtin": "demo-flash"}}}}, "Demo"),
    ({"models": {"demo-flash": {"worker": {"thread": 1}}}}, "thread"),
    ({"numerics": "fp8"}, "numerics"),
    ({"adminKey": {"value": "hunter2"}}, "adminKey.value"),
    ({"database": {"value": "mysql://u:hunter2@h/d"}}, "database.value"),
    ({"worker": {"shmSize": "many"}}, "shmSize"),
    ({"models": None}, "models is empty"),
    ({"models": {"b": {"id": "demo-flash", "worldSize": 1, "device": "cpu", "source": {"builtin": "demo-flash"}}}}, "the id demo-flash"),
    ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs"),
    ({"inferencePool": {"enabled": True}}, "endpointPicker.name"),
    ({"monitoring": {"prometheusRule": {"enabled": True}}}, "files/alerts"),
    ({"monitoring": {"dashboards": {"enabled": True}}}, "files/dashboards"),
]


@pytest.mark.parametrize(("wrong", "named"), REFUSED, ids=[named for _, named in REFUSED])
def test_what_cannot_be_is_refused_by_name(wrong, named):
    if named.startswith("files/") and list((CHART / named).glob("*")):
        pytest.skip("the chart has them")
    with pytest.raises(Refused) as refused:
        render({**DEMO, **wrong} if wrong.get("models", 1) is None else merge(DEMO, wrong))
    assert named in str(refused.value)
    assert "hunter2" not in str(refused.value), "a message shows a secret"


def test_the_readme_lists_every_value():
    assert document.is_current(), "README.md is out of date: run deploy/helm/tests/document.py"


def test_every_value_is_described():
    undescribed = [row.path for row in document.rows() if not row.text]
    assert not undescribed


def test_presets_hold_what_they_are_named_for():
    sizes = {path.stem: sum(model["worldSize"] for model in load(path)["models"].values()) for path in PRESETS}
    assert sizes == {"cpu-demo": 2, "v4-flash-8xh200": 8, "v4-pro-16xh200": 16}


def test_files_are_yaml_without_doubled_keys():
    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            keys = [self.construct_object(key, deep) for key, _ in node.value if key.value != "<<"]
            assert len(keys) == len(set(keys)), f"a doubled key in {keys}"
            return super().construct_mapping(node, deep)

    for path in [CHART / "values.yaml", *PRESETS, *FEATURES]:
        yaml.load(path.read_text(), Strict)
