"""What the chart makes is what Kubernetes' own schemas allow, and keeps what an operator relies on."""

import math
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.deploy.chart import CHART, PRESETS, ROOT, Object, objects, parsed, schema_problems, template
from tests.docs.pages import POD_BACKUP, block_of
from watertower.backends.kafka_client import KafkaSettings
from watertower.config import ServiceSettings

EVERYTHING = (
    "--set=metrics.enabled=true,metrics.serviceMonitor.enabled=true,metrics.serviceMonitor.labels.team=a",
    "--set=pod.priorityClassName=high,pod.nodeSelector.disk=ssd,pod.annotations.a=b,pod.labels.c=d,image.pullSecrets={login}",
    '--set-json=pod.tolerations=[{"key":"a","operator":"Exists"}]',
    '--set-json=pod.affinity={"podAntiAffinity":{}}',
    '--set-json=networkPolicy.callers=[{"podSelector":{"matchLabels":{"app":"a"}}}]',
    '--set-json=networkPolicy.scrapers=[{"namespaceSelector":{}}]',
    "--set=settings.query_cache_bytes_max=536870911,settings.log_level=debug,bindAddress=[::]",
    "--set=serviceAccount.name=mine,embedded.storage.className=fast,embedded.refuseEviction=true",
)
CLUSTER_ONLY = (
    "--set=ingest.autoscaling.enabled=true,query.autoscaling.enabled=true,projector.keda.enabled=true,cassandra.caSecret.name=ca",
    '--set-json=networkPolicy.kafka=[{"ipBlock":{"cidr":"10.0.0.0/8"}}]',
    '--set-json=networkPolicy.cassandra=[{"namespaceSelector":{}}]',
    "--set=networkPolicy.kafkaPorts={9092,9094},networkPolicy.cassandraPorts={9142}",
)
VARIANTS: dict[str, tuple[str, ...]] = {
    "embedded": ("embedded",),
    "embedded with everything": ("embedded", *EVERYTHING),
    "cluster": ("cluster",),
    "cluster with everything": ("cluster", *EVERYTHING, *CLUSTER_ONLY),
    "cluster without logins": (
        "cluster",
        "--set=kafka.securityProtocol=plaintext,kafka.user=,kafka.passwordSecret.name=,kafka.caSecret.name=",
        "--set=cassandra.user=,cassandra.passwordSecret.name=,projector.keda.enabled=true",
    ),
    "cluster with SASL alone": (
        "cluster",
        "--set=kafka.securityProtocol=sasl_plaintext,kafka.caSecret.name=,kafka.saslMechanism=PLAIN,projector.keda.enabled=true",
    ),
    "cluster with TLS alone": (
        "cluster",
        "--set=kafka.securityProtocol=ssl,kafka.user=,kafka.passwordSecret.name=,projector.keda.enabled=true",
    ),
    "cluster with less": (
        "cluster",
        "--set=networkPolicy.enabled=false,setup.enabled=false,serviceAccount.create=false,topologySpread.enabled=false",
        "--set=ingest.podDisruptionBudget.enabled=false,drainMs=0",
    ),
    "other names": (
        "cluster",
        "--set=fullnameOverride=a-name-that-is-much-longer-than-names-of-services-may-be-in-the-end",
        "--set=nameOverride=x",
    ),
}

PORTS = {"ingest": 50051, "query": 50052, "projector": 50053}


@pytest.fixture(params=sorted(VARIANTS))
def made(request: pytest.FixtureRequest) -> list[Object]:
    """The objects of each variant."""
    return objects(*VARIANTS[request.param])


def workloads(made: list[Object]) -> Iterator[Object]:
    """Whatever has pods."""
    return (one for one in made if one["kind"] in ("Deployment", "StatefulSet", "Job"))


def of_kind(made: list[Object], kind: str) -> list[Object]:
    """All of a kind."""
    return [one for one in made if one["kind"] == kind]


def environment(container: Object) -> dict[str, str]:
    """A container's settings."""
    return {variable["name"].removeprefix("WATERTOWER_").lower(): variable["value"] for variable in container["env"]}


def pods(made: list[Object]) -> Iterator[tuple[Object, Object]]:
    """(workload, its pods' spec)."""
    return ((one, one["spec"]["template"]["spec"]) for one in workloads(made))


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_kubernetes_allows_it(variant: str) -> None:
    """By the schemas of the API, of KEDA and of the Prometheus operator, with no property that they do not have."""
    assert schema_problems(template(*VARIANTS[variant])) == ""


@pytest.mark.parametrize("word", ["2026", "true", "1e3"])
@pytest.mark.parametrize("preset", PRESETS)
def test_names_stay_words(preset: str, word: str) -> None:
    """Whatever YAML would take them for."""
    names = ("kafka.passwordSecret", "kafka.caSecret", "cassandra.passwordSecret", "cassandra.caSecret") if preset == "cluster" else ()
    chosen = {f"{name}.{part}" for name in names for part in ("name", "key")}
    chosen |= {"serviceAccount.name", "image.pullSecrets[0]", "pod.priorityClassName", "embedded.storage.className"}
    own = word if word.isalpha() else "watertower"  # as names of Services must begin
    given = [f"--set-string={name}={word}" for name in sorted(chosen)] + [f"--set-string=nameOverride={own},fullnameOverride={own}"]
    switched = "metrics.enabled=true,metrics.serviceMonitor.enabled=true,embedded.refuseEviction=true"
    keda = ("--set=projector.keda.enabled=true",) if preset == "cluster" else ()
    made = template(preset, *given, f"--set={switched}", *keda, f"--set-string=topologySpread.keys[0]={word}", release=word)
    assert schema_problems(made) == ""
    assert all(one["metadata"]["labels"]["app.kubernetes.io/instance"] == word for one in parsed(made))


def test_the_check_by_schemas_can_fail() -> None:
    """A property at a wrong place, a wrong type, a kind that no schema has."""
    text = template("cluster")
    assert "replicsa" in schema_problems(text.replace("replicas:", "replicsa:"))
    assert "got string" in schema_problems(text.replace("replicas: 2", 'replicas: "2"'))
    assert "could not find schema" in schema_problems(text.replace("kind: Deployment", "kind: Deploiment"))


def test_pods_are_restricted(made: list[Object]) -> None:
    """As the Pod Security Standard `restricted` asks for, with a root file system that is read only, and no token of the API server."""
    for _, pod in pods(made):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert (security["runAsUser"], security["fsGroup"]) == (10001, 10001)
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        assert {volume["name"] for volume in pod["volumes"]} >= {"tmp"}
        assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if "emptyDir" in volume)


def test_every_container_has_a_version_and_resources(made: list[Object]) -> None:
    """Memory is limited to what is known, CPU is not: being throttled costs every caller."""
    for _, pod in pods(made):
        for container in pod["containers"]:
            assert ":" in container["image"]
            assert not container["image"].endswith(":latest")
            assert container["resources"]["requests"]["memory"]
            assert set(container["resources"]["limits"]) == {"memory"}


def test_every_server_is_probed_where_it_serves(made: list[Object]) -> None:
    """Started and alive by one name of the health service, ready by the other; at the port that the process is told."""
    for workload, pod in pods(made):
        for container in pod["containers"]:
            if workload["kind"] == "Job":
                assert "readinessProbe" not in container
                continue
            role = container["name"]
            assert container["args"] == [role]
            settings = environment(container)
            port = settings[{"ingest": "write_port", "query": "read_port", "projector": "projector_health_port"}[role]]
            host = settings[{"ingest": "write_host", "query": "read_host", "projector": "projector_health_host"}[role]]
            assert host in ("0.0.0.0", "[::]")
            assert int(port) == PORTS[role]
            assert {"name": role, "containerPort": PORTS[role], "protocol": "TCP"} in container["ports"]
            services = {probe: container[f"{probe}Probe"]["grpc"] for probe in ("startup", "readiness", "liveness")}
            assert services == {
                "startup": {"port": PORTS[role], "service": "alive"},
                "readiness": {"port": PORTS[role], "service": ""},
                "liveness": {"port": PORTS[role], "service": "alive"},
            }


def test_the_page_has_the_probes_of_the_chart() -> None:
    """Those of query: whoever writes manifests by hand copies them."""
    page = (ROOT / "docs" / "operating.md").read_text("utf-8")
    (shown,) = parsed(page[page.index("startupProbe: ") :].partition("```")[0])
    (query,) = (pod["containers"][0] for one, pod in pods(objects("cluster")) if one["metadata"]["name"] == "watertower-query")
    assert shown == {name: query[name] for name in shown}
    assert len(shown) == 3


def test_metrics_are_where_they_are_scraped() -> None:
    """The port of each role is its own, the process is told it, a headless Service has it, and the monitor finds that."""
    for variant in ("embedded with everything", "cluster with everything"):
        made = objects(*VARIANTS[variant])
        (monitor,) = of_kind(made, "ServiceMonitor")
        wanted = monitor["spec"]["selector"]["matchLabels"]
        found = [one for one in of_kind(made, "Service") if wanted.items() <= one["metadata"]["labels"].items()]
        assert len(found) == len(PORTS)
        containers = {container["name"]: container for workload, pod in pods(made) for container in pod["containers"]}
        for service in found:
            (port,) = (port for port in service["spec"]["ports"] if port["name"] == monitor["spec"]["endpoints"][0]["port"])
            role = port["targetPort"].removeprefix("prom-")
            assert {"name": port["targetPort"], "containerPort": port["port"], "protocol": "TCP"} in containers[role]["ports"]
            assert environment(containers[role])[f"{role}_metrics_port"] == str(port["port"])


def test_pods_have_time_to_end(made: list[Object]) -> None:
    """SIGKILL comes after a process may have drained and finished, and old connections are over before that."""
    for workload, pod in pods(made):
        if workload["kind"] == "Job":
            continue
        for container in pod["containers"]:
            settings = environment(container)
            takes_s = (int(settings["drain_ms"]) + int(settings["shutdown_grace_ms"])) / 1e3
            assert pod["terminationGracePeriodSeconds"] >= math.ceil(takes_s) + 10
            for side in {"ingest", "query"} & {container["name"]}:
                assert int(settings[f"{side}_connection_age_grace_ms_max"]) / 1e3 <= takes_s
                assert int(settings[f"{side}_connection_age_ms_max"]) <= 300_000


def test_containers_of_compose_have_time_to_end() -> None:
    """As pods have, with the service's own defaults."""
    head, _, services = (ROOT / "docker-compose.yml").read_text("utf-8").partition("\nservices:\n")
    (period_s,) = re.findall(r"^x-watertower: &watertower$.*^  stop_grace_period: ([0-9]+)s\b", head, re.MULTILINE | re.DOTALL)
    defaults = ServiceSettings()
    assert int(period_s) >= math.ceil((defaults.drain_ms + defaults.shutdown_grace_ms) / 1e3) + 10
    assert all(f"\n  {role}:\n    <<: *watertower\n" in services for role in PORTS)
    assert "stop_grace_period" not in services


def test_draining_is_no_shorter_than_a_look_of_the_probe() -> None:
    """By default: what looks at a pod as the probe does has seen once that it ends while it still takes calls. No pod goes before another
    one is ready."""
    for workload, pod in pods(objects("cluster")):
        if workload["kind"] == "Deployment":
            (container,) = pod["containers"]
            assert int(environment(container)["drain_ms"]) >= container["readinessProbe"]["periodSeconds"] * 1_000
            assert workload["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_selectors_select_their_pods_and_no_others(made: list[Object]) -> None:
    """Workloads, Services, budgets, policies and spreading all mean the pods of one component."""
    labels = {one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"] for one in workloads(made)}
    for one in made:
        name = one["metadata"]["name"]
        assert len(name) <= 63
        if one["kind"] in ("Deployment", "StatefulSet"):
            selector = one["spec"]["selector"]["matchLabels"]
            assert [other for other in labels if selector.items() <= labels[other].items()] == [name]
            for constraint in one["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
                assert constraint["labelSelector"]["matchLabels"] == selector
        elif one["kind"] == "Service":
            found = [other for other in labels if one["spec"]["selector"].items() <= labels[other].items()]
            assert len(found) == 1
            (workload,) = (other for other in workloads(made) if other["metadata"]["name"] == found[0])
            named = {port["name"] for container in workload["spec"]["template"]["spec"]["containers"] for port in container["ports"]}
            assert {port["targetPort"] for port in one["spec"]["ports"]} <= named
        elif one["kind"] == "PodDisruptionBudget":
            selector = one["spec"]["selector"]["matchLabels"]
            assert [other for other in labels if selector.items() <= labels[other].items()] == [name]
        elif one["kind"] == "NetworkPolicy":
            selector = one["spec"]["podSelector"]["matchLabels"]
            component = _component(one["metadata"]["labels"])
            selected = {other for other in labels if selector.items() <= labels[other].items()}
            assert selected == {other for other in labels if _component(labels[other]) == component} != set()
        elif one["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            target = one["spec"]["scaleTargetRef"]["name"]
            (workload,) = (other for other in workloads(made) if other["metadata"]["name"] == target)
            assert "replicas" not in workload["spec"]  # an upgrade would undo what was scaled


def test_names_are_unique_and_labels_are_standard(made: list[Object]) -> None:
    """Nothing overwrites another object, and everything can be found by the labels that Kubernetes recommends."""
    names = [(one["kind"], one["metadata"]["name"]) for one in made]
    assert len(set(names)) == len(names)
    for one in made:
        assert {
            "app.kubernetes.io/name",
            "app.kubernetes.io/instance",
            "app.kubernetes.io/component",
            "app.kubernetes.io/managed-by",
            "helm.sh/chart",
        } <= set(one["metadata"]["labels"])


def test_policies_open_the_ports_that_are_served(made: list[Object]) -> None:
    """And no others; every pod has a policy; embedded pods reach nothing, the others the engines and DNS."""
    policies = {_component(one["spec"]["podSelector"]["matchLabels"]): one["spec"] for one in of_kind(made, "NetworkPolicy")}
    if not policies:
        return
    for workload, pod in pods(made):
        component = _component(workload["spec"]["template"]["metadata"]["labels"])
        policy = policies[component]
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        opened = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
        served = {port["containerPort"] for container in pod["containers"] for port in container.get("ports", [])}
        assert opened == served - {PORTS["projector"]}  # which only probes ask: a node reaches its own pods
        reached = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
        if component == "embedded":
            assert policy["egress"] == []
        else:
            assert {53} < reached
            settings = environment(pod["containers"][0])
            ports = {int(settings[name].rpartition(":")[2]) for name in ("kafka_bootstrap_servers", "cassandra_contact_points")}
            assert ports | {53} == reached or reached == {53, 9092, 9094, 9142}


def test_ports_of_several_addresses_are_opened_once() -> None:
    """Brokers and nodes may have ports of their own."""
    made = objects("cluster", "--set=kafka.bootstrapServers=a:9093\\, b:9094\\,c:9093")
    policy = next(one for one in of_kind(made, "NetworkPolicy") if one["metadata"]["name"] == "watertower-ingest")
    assert [port["port"] for port in policy["spec"]["egress"][1]["ports"]] == [9093, 9094]


def test_passwords_are_files() -> None:
    """Of Secrets that exist; nothing secret is in the environment, and only the group of the pod can read them."""
    made = objects(*VARIANTS["cluster with everything"])
    for _, pod in pods(made):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            settings = environment(container)
            assert not {"kafka_password", "cassandra_password"} & set(settings)
            mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
            for engine, secrets in (("kafka", ["watertower", "log-cluster-ca-cert"]), ("cassandra", ["store-superuser", "ca"])):
                assert mounts[engine]["readOnly"] is True
                projected = volumes[engine]["projected"]
                assert projected["defaultMode"] == 0o440
                assert [source["secret"]["name"] for source in projected["sources"]] == secrets
                files = {
                    f"{mounts[engine]['mountPath']}/{item['path']}" for source in projected["sources"] for item in source["secret"]["items"]
                }
                assert {settings[f"{engine}_password_file"], settings[f"{engine}_ca_file"]} == files


def test_every_mount_has_its_volume(made: list[Object]) -> None:
    """And every volume is mounted."""
    for workload, pod in pods(made):
        claimed = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == claimed | {volume["name"] for volume in pod["volumes"]}


def test_topics_come_before_tables_and_both_before_the_rest() -> None:
    """As hooks, before an installation and before each upgrade; what a hook needs is there before it."""
    made = objects("cluster", "--set=partitions=12,projector.replicas=3")
    jobs = {one["metadata"]["name"]: one for one in of_kind(made, "Job")}
    weights = {name: int(one["metadata"]["annotations"]["helm.sh/hook-weight"]) for name, one in jobs.items()}
    assert weights["watertower-topics"] < weights["watertower-migrate"]
    policy = next(one for one in of_kind(made, "NetworkPolicy") if one["metadata"]["name"] == "watertower-setup")
    assert int(policy["metadata"]["annotations"]["helm.sh/hook-weight"]) < min(weights.values())
    for job in jobs.values():
        assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
        pod = job["spec"]["template"]["spec"]
        assert "serviceAccountName" not in pod  # the release's own comes later
        wait_s = int(pod["containers"][0]["args"][-1])
        attempts_s = (job["spec"]["backoffLimit"] + 1) * (wait_s + 10)
        assert attempts_s < 300, "helm's default --timeout is over first"
        assert attempts_s + 60 <= job["spec"]["activeDeadlineSeconds"], "the deadline deletes the pod with its log"
        assert job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [3]
        assert environment(pod["containers"][0])["store"] == "cassandra"
    assert jobs["watertower-topics"]["spec"]["template"]["spec"]["containers"][0]["args"][:4] == ["topics", "create", "--partitions", "12"]
    assert jobs["watertower-migrate"]["spec"]["template"]["spec"]["containers"][0]["args"][0] == "migrate"


def test_the_embedded_service_is_one_pod_with_its_data_on_a_volume() -> None:
    """The roles share a folder below the root of the volume, which may have a lost+found; callers know both modes by the same names."""
    made = objects("embedded")
    (pod_set,) = list(workloads(made))
    assert (pod_set["kind"], pod_set["spec"]["replicas"]) == ("StatefulSet", 1)
    containers = pod_set["spec"]["template"]["spec"]["containers"]
    assert [container["name"] for container in containers] == ["ingest", "projector", "query"]
    for container in containers:
        settings = environment(container)
        assert (settings["data"], settings["log"], settings["store"]) == ("/data/watertower", "sqlite", "rocksdb")
        assert settings["partitions"] == "8"
        assert {"name": "data", "mountPath": "/data"} in container["volumeMounts"]
    names = {one["metadata"]["name"] for one in of_kind(made, "Service")}
    assert names == {one["metadata"]["name"] for one in of_kind(objects("cluster"), "Service")}
    assert pod_set["spec"]["serviceName"] in names
    assert all(one["spec"]["publishNotReadyAddresses"] is True for one in of_kind(made, "Service"))
    assert pod_set["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Retain"


def test_the_projectors_can_be_upgraded_first() -> None:
    """A version of one role, while the hooks and the others have the new one."""
    made = objects("cluster", "--set-string=image.tag=20261126,ingest.image.tag=1")
    images = {one["metadata"]["name"].removeprefix("watertower-"): pod["containers"][0]["image"] for one, pod in pods(made)}
    assert images.pop("ingest") == "localhost/watertower:1"
    assert images == dict.fromkeys(("projector", "query", "topics", "migrate"), "localhost/watertower:20261126")
    digest = f"sha256:{'0' * 64}"
    for own, wanted in (("tag=1", ":1"), (f"digest={digest[:-1]}1", f"@{digest[:-1]}1")):
        made = objects("cluster", f"--set-string=image.digest={digest},ingest.image.{own}")
        images = {one["metadata"]["name"].removeprefix("watertower-"): pod["containers"][0]["image"] for one, pod in pods(made)}
        assert images.pop("ingest") == f"localhost/watertower{wanted}"
        assert set(images.values()) == {f"localhost/watertower@{digest}"}


def test_projectors_scale_on_the_lag_of_their_group() -> None:
    """The group and the topic are those that the service uses, and KEDA logs in as the service does."""
    made = objects("cluster", "--set=projector.keda.enabled=true,kafka.prefix=other,projector.keda.maxReplicas=16")
    (scaled,) = of_kind(made, "ScaledObject")
    service = KafkaSettings("broker:9092", prefix="other")
    trigger: dict[str, Any] = scaled["spec"]["triggers"][0]
    assert trigger["metadata"]["consumerGroup"] == service.group
    assert trigger["metadata"]["topic"] == service.log_topic
    assert scaled["spec"]["maxReplicaCount"] == 16
    assert trigger["metadata"]["excludePersistentLag"] == "true"  # a stopped partition is helped by no pod
    (login,) = of_kind(made, "TriggerAuthentication")
    assert trigger["authenticationRef"]["name"] == login["metadata"]["name"]
    (secret,) = of_kind(made, "Secret")
    assert secret["stringData"] == {"sasl": "scram_sha512", "tls": "enable", "username": "watertower"}
    taken = {one["parameter"]: (one["name"], one["key"]) for one in login["spec"]["secretTargetRef"]}
    assert taken["password"] == ("watertower", "password")
    assert taken["ca"] == ("log-cluster-ca-cert", "ca.crt")
    made = objects("cluster", '--set-json=projector.keda={"enabled": true, "lagRecords": 1000000}')  # 1e+06 to templates
    assert of_kind(made, "ScaledObject")[0]["spec"]["triggers"][0]["metadata"]["lagThreshold"] == "1000000"
    for variant, words in (("cluster with SASL alone", ("plaintext", "disable")), ("cluster with TLS alone", ("none", "enable"))):
        (secret,) = of_kind(objects(*VARIANTS[variant]), "Secret")
        assert (secret["stringData"]["sasl"], secret["stringData"]["tls"]) == words


def test_an_old_pod_stays_until_callers_know_the_new_one() -> None:
    """gRPC's resolver asks DNS once in 30 s: whoever is called through it must be there for longer beside the old pods."""
    for options, wanted in (((), 35), (("--set=ingest.minReadySeconds=5,query.minReadySeconds=5",), 5)):
        found = {one["metadata"]["name"]: one["spec"].get("minReadySeconds") for one in of_kind(objects("cluster", *options), "Deployment")}
        assert found == {"watertower-ingest": wanted, "watertower-projector": None, "watertower-query": wanted}


def test_a_rollout_that_goes_on_is_not_given_up() -> None:
    """However long a pod must have been ready before it counts: an API server refuses a deadline that is not later."""
    chosen = "--set=ingest.minReadySeconds=3600,query.minReadySeconds=600,probes.startupSeconds=900"
    for options, longest in (((), 35 + 120), ((chosen,), 3600 + 900)):
        specs = [one["spec"] for one in of_kind(objects("cluster", *options), "Deployment")]
        started_s = [one["template"]["spec"]["containers"][0]["startupProbe"]["failureThreshold"] for one in specs]
        needed = [one.get("minReadySeconds", 0) + seconds for one, seconds in zip(specs, started_s, strict=True)]
        assert [one["progressDeadlineSeconds"] - seconds for one, seconds in zip(specs, needed, strict=True)] == [600] * 3
        assert max(needed) == longest


def test_an_eviction_takes_one_pod() -> None:
    """Of each role; the embedded pod can be kept from being evicted at all."""
    budgets = {one["metadata"]["name"]: one["spec"] for one in of_kind(objects("cluster"), "PodDisruptionBudget")}
    assert {name: budget["maxUnavailable"] for name, budget in budgets.items()} == {f"watertower-{role}": 1 for role in PORTS}
    assert of_kind(objects("embedded"), "PodDisruptionBudget") == []
    (budget,) = of_kind(objects("embedded", "--set=embedded.refuseEviction=true"), "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 0


def test_a_release_remembers_what_cannot_change() -> None:
    """By the release's name, whatever its objects are called; test_upgrades.py has the comparison."""
    own = {
        "embedded": {"partitions": "8", "embedded.storage.size": "20Gi", "embedded.storage.className": ""},
        "cluster": {"partitions": "16", "kafka.prefix": "watertower", "cassandra.keyspace": "watertower"},
    }
    for preset, values in own.items():
        (found,) = (one for one in of_kind(objects(preset, "--set=fullnameOverride=other"), "ConfigMap"))
        assert found["metadata"]["name"] == "watertower-log"
        assert found["data"] == {"mode": preset, "fullnameOverride": "other", "nameOverride": "watertower", **values}


def test_presets_are_all_there_is() -> None:
    """Every file of them is rendered by these tests."""
    files = {path.stem for path in (CHART / "presets").iterdir()}
    assert {arguments[0] for arguments in VARIANTS.values()} == set(PRESETS) == files


def _component(labels: dict[str, str]) -> str:
    return labels["app.kubernetes.io/component"]


def test_the_page_backs_up_and_restores_what_the_chart_makes() -> None:
    """Names, folders and the pod of docs/kubernetes.md are those of the preset; the pod may run wherever the preset's may."""
    made = objects("embedded")
    (pod_set,) = of_kind(made, "StatefulSet")
    spec = pod_set["spec"]["template"]["spec"]
    query = next(container for container in spec["containers"] if container["name"] == "query")
    (mount,) = (mount for mount in query["volumeMounts"] if mount["name"] == "data")
    data = next(variable["value"] for variable in query["env"] if variable["name"] == "WATERTOWER_DATA")
    name = pod_set["metadata"]["name"]
    backup, restore = (block_of(*place).text for place in POD_BACKUP)
    assert (
        f"exec {name}-0 --namespace watertower --container query -- watertower backup --data {data} {mount['mountPath']}/backup" in backup
    )
    assert f"mv {data} {mount['mountPath']}/before && mv {mount['mountPath']}/backup {data}" in restore
    assert f"scale statefulset {name} " in restore

    manifest = restore.split("<<'END'\n")[1].split("END\n")[0]
    assert schema_problems(manifest) == ""
    (pod,) = parsed(manifest)
    (container,) = pod["spec"]["containers"]
    assert pod["spec"]["securityContext"] == {key: spec["securityContext"][key] for key in pod["spec"]["securityContext"]}
    assert set(spec["securityContext"]) - set(pod["spec"]["securityContext"]) == {"fsGroupChangePolicy"}
    assert container["securityContext"] == query["securityContext"]
    assert container["image"] == query["image"]
    assert container["volumeMounts"] == [mount]
    claim = f"{pod_set['spec']['volumeClaimTemplates'][0]['metadata']['name']}-{name}-0"
    assert pod["spec"]["volumes"] == [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]
