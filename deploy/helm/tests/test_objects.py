"""What is rendered is what Kubernetes takes, and its parts fit together."""

import re

import pytest
import schemas
from chart import (CHART, FEATURES, PRESETS, ROOT, container, is_chosen, load, names, of_kind, one, pod_template, ports, render,
                   workloads)

ALL = PRESETS + FEATURES
# Their definitions are in no package; test_optional.py compares them field by field.
WITHOUT_SCHEMA = {"LeaderWorkerSet", "InferencePool"}


@pytest.fixture(scope="module", params=ALL, ids=lambda path: path.stem)
def objects(request):
    return render(load(request.param))


def test_every_object_is_valid(objects):
    unknown = set()
    for obj in objects:
        problems = schemas.problems(obj)
        if problems is None:
            unknown.add(obj["kind"])
        assert not problems
    assert unknown <= WITHOUT_SCHEMA


def test_names_are_unique_and_short(objects):
    listed = names(objects)
    assert len(listed) == len(set(listed))
    for obj in objects:
        # A StatefulSet's pods are labelled with its name and a hash of eleven characters.
        assert len(obj["metadata"]["name"]) <= 63 - 11, obj["metadata"]["name"]


def test_the_longest_names_fit():
    model = {"worldSize": 1, "device": "cpu", "source": {"builtin": "demo-flash"}}
    objects = render({"fullnameOverride": "n" * 60, "models": {"m" * 16: model}, "adminKey": {"existingSecret": "x"}})
    assert max(len(obj["metadata"]["name"]) for obj in objects) <= 63 - 11
    for obj in objects:
        assert all(len(value) <= 63 for value in obj["metadata"]["labels"].values())


def test_selectors_choose_their_own_pods_only(objects):
    for workload in workloads(objects):
        if workload["kind"] == "LeaderWorkerSet":
            continue
        selector = workload["spec"]["selector"]["matchLabels"]
        assert [w["metadata"]["name"] for w in workloads(objects) if is_chosen(selector, w)] == [workload["metadata"]["name"]]
    for budget in of_kind(objects, "PodDisruptionBudget"):
        selector = budget["spec"]["selector"]["matchLabels"]
        assert [w["metadata"]["name"] for w in workloads(objects) if is_chosen(selector, w)] == [budget["metadata"]["name"]]


def test_services_lead_to_ports_that_exist(objects):
    for service in of_kind(objects, "Service"):
        chosen = [w for w in workloads(objects) if is_chosen(service["spec"]["selector"], w)]
        assert len(chosen) == 1
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports(chosen[0]), f"{service['metadata']['name']}: {port}"


def test_workers_find_the_coordinator_before_it_is_ready(objects):
    for workload in workloads(objects):
        arguments = container(workload)["args"]
        if arguments[0] != "worker":
            continue
        url = arguments[arguments.index("--coordinator") + 1]
        host, port = re.fullmatch(r"http://([a-z0-9-]+):(\d+)", url).groups()
        service = one(objects, "Service", host)
        # Otherwise nobody could ever register: it is ready only when they have.
        assert service["spec"]["publishNotReadyAddresses"] is True
        assert service["spec"]["clusterIP"] == "None"
        assert int(port) == ports(one(objects, "Deployment", host.replace("-cluster", "-coordinator")))["grpc"]


def test_network_policies_name_ports_that_exist(objects):
    for policy in of_kind(objects, "NetworkPolicy"):
        chosen = [w for w in workloads(objects) if is_chosen(policy["spec"]["podSelector"]["matchLabels"], w)]
        assert len(chosen) == 1
        for rule in policy["spec"]["ingress"]:
            assert rule.get("from"), "a rule without peers lets everybody in"
            for port in rule.get("ports", []):
                assert port["port"] in ports(chosen[0]).values()
        for rule in policy["spec"]["egress"]:
            assert rule.get("to"), "a rule without peers lets everything out"
            for peer in rule["to"]:
                if "podSelector" not in peer or "namespaceSelector" in peer:
                    continue
                targets = [w for w in workloads(objects) if is_chosen(peer["podSelector"]["matchLabels"], w)]
                assert targets
                for port in rule.get("ports", []):
                    assert all(port["port"] in ports(target).values() for target in targets)


def test_pods_have_no_rights(objects):
    for workload in workloads(objects):
        spec = pod_template(workload)["spec"]
        elects = "--leader-election" in container(workload)["args"]
        assert spec["automountServiceAccountToken"] is elects
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        ours = [c for c in spec["containers"] + spec.get("initContainers", []) if c["name"] in ("coordinator", "worker") or c["name"].startswith("download-")]
        assert ours
        for item in ours:
            context = item["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"]["drop"] == ["ALL"]
            assert any(mount["mountPath"] == "/tmp" for mount in item["volumeMounts"])


def test_every_mount_has_its_volume(objects):
    for workload in workloads(objects):
        spec = pod_template(workload)["spec"]
        volumes = [v["name"] for v in spec["volumes"]]
        assert len(volumes) == len(set(volumes))
        claims = [c["metadata"]["name"] for c in workload["spec"].get("volumeClaimTemplates", [])]
        mounted = set()
        for item in spec["containers"] + spec.get("initContainers", []):
            paths = [mount["mountPath"] for mount in item.get("volumeMounts", [])]
            assert len(paths) == len(set(paths))
            mounted |= {mount["name"] for mount in item.get("volumeMounts", [])}
        assert mounted == set(volumes) | set(claims)


def seconds(source, pattern):
    return int(re.search(pattern, (ROOT / source).read_text()).group(1))


def test_grace_periods_leave_the_program_its_time(objects):
    program = (
        seconds("coordinator/src/options.rs", r"drain_timeout: Duration::from_secs\((\d+)\)")
        + seconds("coordinator/src/server.rs", r"FLUSH_TIMEOUT: Duration = Duration::from_secs\((\d+)\)")
        + seconds("coordinator/src/auth/ledger/writer.rs", r"FLUSH_WITHIN: Duration = Duration::from_secs\((\d+)\)")
    )
    for workload in workloads(objects):
        spec = pod_template(workload)["spec"]
        if workload["kind"] == "Deployment":
            hook = container(workload)["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert spec["terminationGracePeriodSeconds"] == hook + program + 10
        else:
            needed = 2 * seconds("worker/src/server.rs", r"STOP_GRACE: Duration = Duration::from_secs\((\d+)\)")
            assert spec["terminationGracePeriodSeconds"] == needed + 10


def test_the_liveness_probe_outlasts_a_recovery(objects):
    recovery = seconds("coordinator/src/cluster/options.rs", r"recovery: Duration::from_secs\((\d+)\)")
    stall = seconds("coordinator/src/options.rs", r"decode_stall_after: Duration::from_secs\((\d+)\)")
    for deployment in of_kind(objects, "Deployment"):
        probe = container(deployment)["livenessProbe"]
        if probe["httpGet"]["path"] == "/health/decode":
            assert stall + probe["periodSeconds"] * probe["failureThreshold"] > 2 * recovery


def test_no_worker_is_replaced_because_another_is(objects):
    for workload in workloads(objects):
        if workload["kind"] == "StatefulSet":
            assert workload["spec"]["podManagementPolicy"] == "Parallel"
        if workload["kind"] == "LeaderWorkerSet":
            assert workload["spec"]["leaderWorkerTemplate"]["restartPolicy"] == "None"


def test_images_are_chosen_by_device(objects):
    for workload in workloads(objects):
        image, arguments = container(workload)["image"], container(workload)["args"]
        is_cuda = "--device" in arguments and arguments[arguments.index("--device") + 1] == "cuda"
        assert image.endswith("-cuda") == is_cuda
        limits = container(workload)["resources"].get("limits", {})
        assert (limits.get("nvidia.com/gpu") == 1) == is_cuda


def test_the_chart_is_of_the_programs_version():
    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)
    assert load(CHART / "Chart.yaml")["appVersion"] == version
