"""What the values turn on, one thing at a time."""

import json
import shutil

import pytest
import schemas
from chart import (CHART, FEATURES, PRESETS, container, load, merge, names, of_kind, one, pod_template, render,
                   workloads)

DEMO = load(next(path for path in PRESETS if path.stem == "cpu-demo"))
EVERYTHING = load(next(path for path in FEATURES if path.stem == "everything"))
STANDBY = load(next(path for path in FEATURES if path.stem == "standby"))
SETS = load(next(path for path in FEATURES if path.stem == "leader-worker-set"))


@pytest.fixture(scope="module")
def everything():
    return render(EVERYTHING)


def test_the_demo_is_nothing_but_this():
    assert names(render(DEMO)) == [
        "Deployment/rel-switchyard-coordinator",
        "NetworkPolicy/rel-switchyard-coordinator",
        "NetworkPolicy/rel-switchyard-worker-demo-flash",
        "Pod/rel-switchyard-test-ready",
        "PodDisruptionBudget/rel-switchyard-worker-demo-flash",
        "Service/rel-switchyard",
        "Service/rel-switchyard-cluster",
        "Service/rel-switchyard-worker-demo-flash",
        "ServiceAccount/rel-switchyard",
        "StatefulSet/rel-switchyard-worker-demo-flash",
    ]


def test_several_coordinators_may_use_their_lease_and_nothing_else():
    objects = render(STANDBY)
    added = set(names(objects)) - set(names(render(merge(STANDBY, {"coordinator": {"replicas": 1}}))))
    assert added == {"Lease/rel-switchyard", "Role/rel-switchyard-election", "RoleBinding/rel-switchyard-election"}
    (rule,) = of_kind(objects, "Role")[0]["rules"]
    assert rule == {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": ["rel-switchyard"], "verbs": ["get", "patch"]}
    (subject,) = of_kind(objects, "RoleBinding")[0]["subjects"]
    deployment = one(objects, "Deployment", "rel-switchyard-coordinator")
    assert subject == {"kind": "ServiceAccount", "name": pod_template(deployment)["spec"]["serviceAccountName"], "namespace": "ns"}
    arguments = container(deployment)["args"]
    assert arguments[arguments.index("--leader-election-lease") + 1] == "rel-switchyard"
    assert deployment["spec"]["replicas"] == 2
    (spread,) = pod_template(deployment)["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert spread["labelSelector"]["matchLabels"] == deployment["spec"]["selector"]["matchLabels"]
    assert any({"port": 6443} in rule["ports"] for rule in one(objects, "NetworkPolicy", "rel-switchyard-coordinator")["spec"]["egress"])


def test_a_spare_is_a_worker_beyond_the_world_size():
    workers = one(render(DEMO), "StatefulSet", "rel-switchyard-worker-demo-flash")
    arguments = container(workers)["args"]
    assert workers["spec"]["replicas"] == 3
    assert arguments[arguments.index("--world-size") + 1] == "2"


def test_a_leader_worker_set_has_the_documented_form():
    objects = render(SETS)
    (workers,) = of_kind(objects, "LeaderWorkerSet")
    template = pod_template(workers)
    assert workers["apiVersion"] == "leaderworkerset.x-k8s.io/v1"
    assert {**workers["spec"], "leaderWorkerTemplate": None} == {"replicas": 1, "startupPolicy": "LeaderCreated", "leaderWorkerTemplate": None}
    assert {**workers["spec"]["leaderWorkerTemplate"], "workerTemplate": None} == {"size": 9, "restartPolicy": "None", "workerTemplate": None}
    assert schemas.problems({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}) == []
    assert not of_kind(objects, "StatefulSet")


def test_an_inference_pool_has_the_documented_form(everything):
    pool = one(everything, "InferencePool", "rel-sy")
    assert pool["apiVersion"] == "inference.networking.k8s.io/v1"
    assert pool["spec"] == {
        "targetPorts": [{"number": 8080}],
        "selector": {"matchLabels": {"pool": "flash"}},
        "endpointPickerRef": {"name": "picker", "port": {"number": 9002}, "failureMode": "FailOpen"},
    }
    (rule,) = one(everything, "HTTPRoute", "rel-sy")["spec"]["rules"]
    assert rule["backendRefs"] == [{"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "rel-sy"}]


def test_a_route_goes_to_the_service_when_there_is_no_pool():
    values = merge(EVERYTHING, {"inferencePool": {"enabled": False}})
    (rule,) = one(render(values), "HTTPRoute", "rel-sy")["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": "rel-sy", "port": 80}]


def test_a_secret_of_ones_own_wins(everything):
    assert [s["metadata"]["name"] for s in of_kind(everything, "Secret")] == ["rel-sy-api-key"]
    spec = pod_template(one(everything, "Deployment", "rel-sy-coordinator"))["spec"]
    environment = {e["name"]: e for e in spec["containers"][0]["env"]}
    assert environment["SWITCHYARD_DATABASE_URL"]["valueFrom"]["secretKeyRef"] == {"name": "postgres", "key": "database-url"}
    assert environment["SWITCHYARD_API_KEY"]["valueFrom"]["secretKeyRef"] == {"name": "rel-sy-api-key", "key": "api-key"}
    (volume,) = [v for v in spec["volumes"] if v["name"] == "admin-key"]
    assert volume["secret"] == {"secretName": "switchyard-admin", "items": [{"key": "key", "path": "admin-key"}]}


def test_no_secret_is_in_a_pod_or_an_argument(everything):
    for obj in everything:
        if obj["kind"] != "Secret":
            assert "sk-sy-of-the-tests" not in json.dumps(obj)


def test_another_secret_restarts_the_coordinator():
    def checksum(key):
        deployment = one(render(merge(DEMO, {"apiKey": {"value": key}})), "Deployment", "rel-switchyard-coordinator")
        return pod_template(deployment)["metadata"]["annotations"]["checksum/secrets"]

    assert checksum("one") != checksum("two")


def test_the_admin_api_is_apart(everything):
    service = one(everything, "Service", "rel-sy-admin")
    assert [port["targetPort"] for port in service["spec"]["ports"]] == ["admin"]
    client = one(everything, "Service", "rel-sy")
    assert [port["targetPort"] for port in client["spec"]["ports"]] == ["http", "grpc"]
    without = render(merge(EVERYTHING, {"adminKey": {"existingSecret": ""}}))
    assert "Service/rel-sy-admin" not in names(without)
    assert "8081" in json.dumps(one(everything, "NetworkPolicy", "rel-sy-coordinator"))
    assert "8081" not in json.dumps(one(without, "NetworkPolicy", "rel-sy-coordinator"))


def test_only_nccl_may_take_any_port(everything):
    def peers(name):
        (rule,) = [r for r in one(everything, "NetworkPolicy", name)["spec"]["ingress"]
                   if r["from"][0].get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/component") == "worker"]
        return rule.get("ports")

    assert peers("rel-sy-worker-flash") is None
    assert peers("rel-sy-worker-pro") == [{"port": 9092}]
    assert peers("rel-sy-worker-small") == [{"port": 9092}]


def test_groups_do_not_talk_to_each_other(everything):
    for name in ("flash", "pro", "small"):
        policy = one(everything, "NetworkPolicy", f"rel-sy-worker-{name}")["spec"]
        rules = [(rule, "from") for rule in policy["ingress"]] + [(rule, "to") for rule in policy["egress"]]
        models = {peer["podSelector"]["matchLabels"].get("switchyard/model")
                  for rule, side in rules for peer in rule[side] if "podSelector" in peer}
        assert models - {None} == {name}


def test_weights_are_read_only_but_for_their_download(everything):
    for name in ("flash", "pro", "small"):
        spec = pod_template(one(everything, "StatefulSet", f"rel-sy-worker-{name}"))["spec"]
        (mount,) = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] == f"model-{name}"]
        assert mount["readOnly"] is True
    (download,) = [c for c in pod_template(one(everything, "StatefulSet", "rel-sy-worker-pro"))["spec"]["initContainers"] if c["name"] == "download-pro"]
    assert {"name": "model-pro", "mountPath": "/models/pro"} in download["volumeMounts"]
    assert {"name": "MODEL_DIR", "value": "/models/pro"} in download["env"]


def test_downloads_outlive_a_pod_where_they_can(everything):
    workers = one(everything, "StatefulSet", "rel-sy-worker-pro")["spec"]
    (claim,) = workers["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "model-pro"
    assert claim["spec"]["resources"]["requests"]["storage"] == "900Gi"
    (volume,) = [v for v in pod_template(of_kind(render(SETS), "LeaderWorkerSet")[0])["spec"]["volumes"] if v["name"] == "model-flash"]
    assert volume["ephemeral"]["volumeClaimTemplate"]["spec"]["resources"]["requests"]["storage"] == "200Gi"


def test_a_title_stays_as_it_is(everything):
    arguments = container(one(everything, "Deployment", "rel-sy-coordinator"))["args"]
    # Kubernetes takes `$(NAME)` for a variable, and `$$(NAME)` for the text.
    assert "deepseek-ai/DeepSeek-V4-Flash=Fast. Costs $$(NOTHING) extra." in arguments


def test_capabilities_are_added_and_still_dropped(everything):
    context = container(one(everything, "StatefulSet", "rel-sy-worker-flash"))["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert context["readOnlyRootFilesystem"] is True
    other = container(one(everything, "StatefulSet", "rel-sy-worker-small"))["securityContext"]
    assert other["capabilities"] == {"drop": ["ALL"]}


def test_spread_counts_the_groups_own_pods(everything):
    workers = one(everything, "StatefulSet", "rel-sy-worker-flash")["spec"]
    (constraint,) = workers["template"]["spec"]["topologySpreadConstraints"]
    assert constraint["labelSelector"] == {"matchLabels": workers["selector"]["matchLabels"]}


def test_prometheus_reads_each_pod_once(everything):
    selector = one(everything, "ServiceMonitor", "rel-sy")["spec"]["selector"]["matchLabels"]
    chosen = [s["metadata"]["name"] for s in of_kind(everything, "Service")
              if all(s["metadata"]["labels"].get(k) == v for k, v in selector.items())]
    assert chosen == ["rel-sy"]
    workers = one(everything, "PodMonitor", "rel-sy-workers")["spec"]
    assert workers["podMetricsEndpoints"][0]["port"] == "metrics"


def test_another_version_of_the_chart_restarts_nothing(tmp_path):
    chart = tmp_path / "switchyard"
    shutil.copytree(CHART, chart)
    text = (chart / "Chart.yaml").read_text()
    (chart / "Chart.yaml").write_text(text.replace("\nversion: ", "\nversion: 9"))
    before, after = render(DEMO), render(DEMO, chart)
    assert before != after
    assert [pod_template(w) for w in workloads(before)] == [pod_template(w) for w in workloads(after)]


def test_alerts_and_dashboards_are_embedded_as_they_are(tmp_path):
    chart = tmp_path / "switchyard"
    shutil.copytree(CHART, chart)
    rule = {"alert": "Down", "expr": "up == 0", "annotations": {"summary": "{{ $labels.pod }} is down"}}
    (chart / "files/alerts").mkdir(parents=True, exist_ok=True)
    (chart / "files/alerts/z.yaml").write_text(json.dumps({"groups": [{"name": "z", "rules": [rule]}]}))
    (chart / "files/dashboards").mkdir(parents=True, exist_ok=True)
    board = '{\n  "title": "{{ a }}",\n  "panels": []\n}\n'
    (chart / "files/dashboards/z_overview.json").write_text(board)
    on = {"monitoring": {"prometheusRule": {"enabled": True}, "dashboards": {"enabled": True}}}
    objects = render(merge(DEMO, on), chart)
    groups = one(objects, "PrometheusRule", "rel-switchyard")
    assert not schemas.problems(groups)
    assert {"name": "z", "rules": [rule]} in groups["spec"]["groups"]
    board_map = one(objects, "ConfigMap", "rel-switchyard-dashboard-z-overview")
    assert board_map["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(board_map["data"]["z_overview.json"]) == json.loads(board)


def test_the_notes_say_what_to_do_and_what_is_lost():
    text = render(DEMO, notes=True)
    assert "kubectl -n ns rollout status deployment/rel-switchyard-coordinator" in text
    assert "Keys and usage are lost" in text
    assert "networkPolicy.coordinatorEgress" not in text
    text = render(STANDBY, notes=True)
    assert "kubectl -n ns wait --for=jsonpath" in text and "rollout status deployment" not in text
    text = render(merge(DEMO, {"database": {"existingSecret": "x"}}), notes=True)
    assert "Keys and usage are lost" not in text
    assert "networkPolicy.coordinatorEgress" in text
