"""A release's life in a real API server. Run by `deploy/helm/check-apiserver`."""

import subprocess

import pytest
import yaml
from api import NAMESPACE, Refused, api, folder_of, helm, path_of, stored
from chart import CHART, FEATURES, HELM, PRESETS, load, merge, render

# Kinds of others whose definitions are in no module that we fetch.
WITHOUT = {"inferencePool": {"enabled": False}, "worker": {"kind": "StatefulSet"}}
ALL = {path.stem: merge(load(path), WITHOUT) for path in PRESETS + FEATURES}
STANDBY = ALL["standby"]
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:rel-switchyard"


def is_within(ours, theirs):
    """Whether the server has kept what it was given; it adds defaults."""
    if isinstance(ours, dict):
        return isinstance(theirs, dict) and all(is_within(value, theirs.get(key)) for key, value in ours.items())
    if isinstance(ours, list):
        # Nothing and an empty list are the same.
        theirs = theirs or []
        return len(ours) == len(theirs) and all(map(is_within, ours, theirs))
    return ours == theirs or str(ours) == str(theirs) or (ours in ("", {}, None) and theirs is None)


def lost(obj):
    """Fields of an object that the server does not have, by their first names."""
    found = stored(obj) or {}
    return [key for key, value in obj.items() if key not in ("stringData", "status") and not is_within(value, found.get(key))]


def labels(obj):
    return stored(obj)["metadata"].get("labels", {})


def installed(values):
    return [o for o in render(values) if "helm.sh/hook" not in o["metadata"].get("annotations", {})]


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    subprocess.run([HELM, "uninstall", "rel", "--namespace", NAMESPACE, "--ignore-not-found"], capture_output=True, check=True)


@pytest.mark.parametrize("name", ALL)
def test_the_server_knows_every_field(name):
    for obj in render(ALL[name]):
        api(f"{folder_of(obj)}?dryRun=All&fieldValidation=Strict", "POST", obj)


@pytest.mark.parametrize("name", ALL)
def test_a_dry_run_keeps_nothing(name):
    helm("install", "rel", str(CHART), "--dry-run=server", values=ALL[name])
    assert all(stored(obj) is None for obj in installed(ALL[name]))


@pytest.mark.parametrize("name", ALL)
def test_a_releases_life(name):
    first = ALL[name]
    second = merge(first, {"commonLabels": {"second": "yes"}, "image": {"tag": "2"}, "coordinator": {"preStopSeconds": 9}})
    helm("install", "rel", str(CHART), values=first)
    for obj in installed(first):
        assert lost(obj) == [], path_of(obj)

    helm("upgrade", "rel", str(CHART), "--dry-run=server", values=second)
    helm("upgrade", "rel", str(CHART), values=second)
    for obj in installed(second):
        assert lost(obj) == [], path_of(obj)
    assert sum("second" in labels(obj) for obj in installed(first)) > 5

    helm("rollback", "rel", "1")
    for obj in installed(first):
        assert lost(obj) == [], path_of(obj)
        assert "second" not in labels(obj)
    history = yaml.safe_load(helm("history", "rel", "--output", "yaml"))
    assert [entry["status"] for entry in history] == ["superseded", "superseded", "deployed"]

    helm("uninstall", "rel")
    left = [obj for obj in installed(first) if "deletionTimestamp" not in ((stored(obj) or {"metadata": {"deletionTimestamp": 0}})["metadata"])]
    # Keys outlive the release.
    assert [obj["kind"] for obj in left] == [obj["kind"] for obj in installed(first) if obj["kind"] == "PersistentVolumeClaim"]
    for obj in left:
        api(path_of(obj), "DELETE")


def test_replicas_come_and_go_with_their_lease():
    alone = merge(STANDBY, {"coordinator": {"replicas": 1}})
    lease = "/apis/coordination.k8s.io/v1/namespaces/ns/leases/rel-switchyard"
    helm("install", "rel", str(CHART), values=alone)
    assert api(lease) is None
    helm("upgrade", "rel", str(CHART), values=STANDBY)
    held = api(lease)
    assert held["spec"] == {}
    # What a leader has written must outlive the next upgrade.
    held["spec"] = {"holderIdentity": "me", "leaseDurationSeconds": 15, "leaseTransitions": 1}
    api(lease, "PUT", held)
    helm("upgrade", "rel", str(CHART), values=merge(STANDBY, {"image": {"tag": "2"}, "coordinator": {"replicas": 3}}))
    assert api(lease)["spec"] == held["spec"]
    deployment = api("/apis/apps/v1/namespaces/ns/deployments/rel-switchyard-coordinator")
    assert deployment["spec"]["replicas"] == 3
    helm("rollback", "rel", "1")
    assert api(lease) is None


@pytest.fixture
def release():
    helm("install", "rel", str(CHART), values=STANDBY)


def may(verb, resource, name="", group="", namespace=NAMESPACE):
    asked = {"verb": verb, "resource": resource, "name": name, "group": group, "namespace": namespace}
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}", "system:authenticated"]
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
              "spec": {"user": ACCOUNT, "groups": groups, "resourceAttributes": asked}}
    return api("/apis/authorization.k8s.io/v1/subjectaccessreviews", "POST", review)["status"]["allowed"]


def test_the_coordinators_account_may_use_its_lease_and_nothing_else(release):
    leases = {"resource": "leases", "group": "coordination.k8s.io"}
    verbs = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"]
    assert [verb for verb in verbs if may(verb, name="rel-switchyard", **leases)] == ["get", "patch"]
    assert not any(may(verb, name="another", **leases) for verb in verbs)
    assert not any(may(verb, name="rel-switchyard", namespace="default", **leases) for verb in verbs)
    for resource, group in [("secrets", ""), ("pods", ""), ("configmaps", ""), ("deployments", "apps"), ("roles", "rbac.authorization.k8s.io")]:
        assert not any(may(verb, resource, group=group) for verb in verbs), resource
    # And whatever nobody thought to ask: all that its own token can do here.
    path = "/api/v1/namespaces/ns/serviceaccounts/rel-switchyard/token"
    token = api(path, "POST", {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}})["status"]["token"]
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": NAMESPACE}}
    rules = api("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", "POST", review, token)["status"]["resourceRules"]
    # Every account may ask what it may do.
    ours = [rule for rule in rules if not {"authorization.k8s.io", "authentication.k8s.io"} & set(rule["apiGroups"])]
    assert ours == [{"verbs": ["get", "patch"], "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": ["rel-switchyard"]}]
    with pytest.raises(Refused) as refused:
        api("/api/v1/namespaces/ns/secrets", token=token)
    assert refused.value.code == 403


def test_the_network_policies_are_kept(release):
    found = api("/apis/networking.k8s.io/v1/namespaces/ns/networkpolicies")["items"]
    assert sorted(policy["metadata"]["name"] for policy in found) == ["rel-switchyard-coordinator", "rel-switchyard-worker-demo-flash"]
    for policy in found:
        assert sorted(policy["spec"]["policyTypes"]) == ["Egress", "Ingress"]


def test_the_server_refuses_what_the_chart_must_not_render():
    """That the checks above can fail: a value that cannot be, and a field that does not exist."""
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "wrong"}}
    for spec, named in [({"ports": [{"port": 99999}]}, "99999"), ({"ports": [{"port": 80}], "portz": []}, "portz")]:
        with pytest.raises(Refused) as refused:
            api(f"{folder_of(service)}?dryRun=All&fieldValidation=Strict", "POST", {**service, "spec": spec})
        assert named in str(refused.value)
