"""Values that cannot be are refused before anything is made, with what to do about it; those that can be are documented."""

import json

import pytest

from tests.deploy.chart import (
    CHART,
    PRESETS,
    SCHEMA,
    documented_values,
    helm,
    objects,
    parsed,
    refusal,
    template,
    values_table,
    with_settings,
    with_table,
)
from watertower.config import QuerySettings, catalogue
from watertower.validation import ID_BYTES_MAX

NO_SECRET = "--set=kafka.passwordSecret.name="

REFUSED = {
    "a typo": (("cluster", "--set=ingest.replcias=3"), "at '/ingest': additional properties 'replcias' not allowed"),
    "a typo at the top": (("embedded", "--set=partitons=3"), "additional properties 'partitons' not allowed"),
    "negative replicas": (("cluster", "--set=query.replicas=-1"), "at '/query/replicas': minimum: got -1, want 0"),
    "no partitions": (("cluster", "--set=partitions=0"), "at '/partitions': minimum: got 0, want 1"),
    "too many partitions": (("cluster", "--set=partitions=65"), "at '/partitions': maximum: got 65, want 64"),
    "another mode": (("cluster", "--set=mode=clustre"), "at '/mode': value must be one of 'embedded', 'cluster'"),
    "a word for a number": (("cluster", "--set-string=drainMs=5s"), "at '/drainMs': got string, want integer"),
    "an address without a port": (
        ("cluster", "--set=kafka.bootstrapServers=kafka"),
        "at '/kafka/bootstrapServers': 'kafka' does not match",
    ),
    "an unknown setting": (
        ("cluster", "--set=settings.query_cachebytes=1"),
        "at '/settings': additional properties 'query_cachebytes' not",
    ),
    "a setting out of bounds": (("cluster", "--set=settings.query_nice=20"), "at '/settings/query_nice': maximum: got 20, want 19"),
    "a setting of the chart's": (("cluster", "--set=settings.drain_ms=1"), "settings.drain_ms: the chart sets it; use drainMs"),
    "a password in the open": (
        ("cluster", "--set=settings.kafka_password=x"),
        "settings.kafka_password: the chart sets it; use kafka.passwordS",
    ),
    "no secret": (
        ("cluster", NO_SECRET),
        "kafka.passwordSecret.name: user watertower needs a password; make a Secret that has it and name it here",
    ),
    "no secret for Cassandra": (
        ("cluster", "--set=cassandra.passwordSecret.name="),
        "cassandra.passwordSecret.name: user store-superuser needs",
    ),
    "a secret without a user": (("cluster", "--set=cassandra.user="), "cassandra.passwordSecret.name: a password without a user"),
    "no user": (("cluster", "--set=kafka.user="), "kafka.user: securityProtocol sasl_ssl needs one"),
    "a user for nobody": (("cluster", "--set=kafka.securityProtocol=ssl"), "kafka.user: securityProtocol ssl shows it to nobody"),
    "certificates for nothing": (
        ("cluster", "--set=kafka.securityProtocol=sasl_plaintext"),
        "kafka.caSecret.name: securityProtocol sasl_plaintext has no certificates",
    ),
    "no brokers": (("cluster", "--set=kafka.bootstrapServers="), "kafka.bootstrapServers: mode cluster needs it; set HOST:PORT"),
    "no nodes": (("cluster", "--set=cassandra.contactPoints="), "cassandra.contactPoints: mode cluster needs it; set HOST:PORT"),
    "engines for nothing": (("embedded", "--set=kafka.bootstrapServers=k:9092"), "kafka.bootstrapServers: mode embedded uses no engines"),
    "more projectors than work": (
        ("cluster", "--set=projector.replicas=17"),
        "projector.replicas: 17 are more than there are partitions (16)",
    ),
    "scaling beyond the work": (
        ("cluster", "--set=projector.keda.enabled=true,projector.keda.maxReplicas=17"),
        "projector.keda.maxReplicas: 17 are more than there are partitions (16)",
    ),
    "scaling to nothing": (("cluster", "--set=projector.keda.minReplicas=0"), "at '/projector/keda/minReplicas': minimum: got 0, want 1"),
    "scaling upside down": (
        ("cluster", "--set=query.autoscaling.enabled=true,query.autoscaling.minReplicas=9"),
        "query.autoscaling.minReplicas: 9 is more than maxReplicas, 8",
    ),
    "scaling on nothing": (
        ("cluster", "--set=query.autoscaling.enabled=true,query.resources.requests.cpu=null"),
        "query.resources.requests.cpu: autoscaling measures against it; set it",
    ),
    "scaling one pod": (("embedded", "--set=ingest.autoscaling.enabled=true"), "ingest.autoscaling.enabled: mode embedded is one pod"),
    "no limit": (("cluster", "--set=ingest.resources.limits.memory=null"), "at '/ingest/resources/limits': missing property 'memory'"),
    "latest": (("cluster", "--set=image.tag=latest"), "image.tag: latest names no version"),
    "a version that YAML takes for a number": (("cluster", "--set-json=image.tag=1.10"), "at '/image/tag'"),
    "latest of one role": (("cluster", "--set=query.image.tag=latest"), "query.image.tag: latest names no version"),
    "calls beyond the end": (
        ("cluster", "--set=connectionAgeGraceMs=15001"),
        "connectionAgeGraceMs: 15001 is more than drainMs and shutdown",
    ),
    "workers that nobody scrapes": (
        ("cluster", "--set=metrics.enabled=true,settings.query_workers=2"),
        "settings.query_workers: each worker has a port of its own for metrics",
    ),
    "a version as a number": (("cluster", "--set=image.tag=2"), "at '/image/tag': got number, want string"),
    "another word for alive": (("cluster", "--set=probes.aliveService=x"), "additional properties 'aliveService' not allowed"),
    "an address that nobody reaches": (
        ("cluster", "--set=bindAddress=127.0.0.1"),
        "at '/bindAddress': value must be one of '0.0.0.0', '[::]'",
    ),
    "a name with a dot": (("cluster", "--set=fullnameOverride=a.b"), "at '/fullnameOverride': 'a.b' does not match"),
    "a name that begins with a digit": (("cluster", "--set=fullnameOverride=9a"), "at '/fullnameOverride': '9a' does not match"),
    "a cache that does not fit": (
        ("cluster", "--set=settings.query_cache_bytes_max=536870913"),
        "query.resources.limits.memory: 1Gi does not hold query_cache_bytes_max of each worker twice (1073741826 bytes)",
    ),
    "a cache that does not fit into a number of bytes": (  # which templates have as 5.36870911e+08
        ("cluster", "--set-json=query.resources.limits.memory=536870911", "--set=query.resources.requests.memory=0.25Gi"),
        "does not hold query_cache_bytes_max",
    ),
    "caches that do not fit": (("embedded", "--set=settings.query_workers=3"), "query.resources.limits.memory: 1Gi does not hold"),
    "a default cache that does not fit": (
        ("cluster", "--set=query.resources.limits.memory=511Mi,query.resources.requests.memory=100Mi"),
        f"twice ({2 * QuerySettings().cache_bytes_max} bytes)",
    ),
    "a warm list that does not fit": (
        ("cluster", "--set=settings.query_warm_entities_max=65028"),
        "query.warmSize: 16Mi does not hold a list of query_warm_entities_max entities once and for each worker (16777224 bytes)",
    ),
    "warm lists that do not fit": (
        ("cluster", "--set=settings.query_warm_entities_max=65027,settings.query_workers=2,query.resources.limits.memory=2Gi"),
        "query.warmSize: 16Mi does not hold",
    ),
    "a default warm list that does not fit": (
        ("cluster", "--set=query.warmSize=2Mi"),
        f"for each worker ({2 * (ID_BYTES_MAX + 1) * QuerySettings().warm_entities_max} bytes)",
    ),
    "workers that warm up in silence": (
        ("cluster", "--set=settings.query_workers=2,query.resources.limits.memory=2Gi,settings.query_warm_ms_max=120000"),
        "probes.startupSeconds: 120 is not more than query_warm_ms_max",
    ),
    "workers that warm up in silence by default": (
        (
            "cluster",
            f"--set=settings.query_workers=2,query.resources.limits.memory=2Gi,probes.startupSeconds={QuerySettings().warm_ms_max // 1000}",
        ),
        "is not more than query_warm_ms_max",
    ),
    "more memory than allowed": (
        ("cluster", "--set=setup.resources.requests.memory=1Gi"),
        "setup.resources.requests.memory: 1Gi is more than the limit, 256Mi",
    ),
    "more cores than allowed": (
        ("embedded", "--set=ingest.resources.requests.cpu=1500m,ingest.resources.limits.cpu=1"),
        "ingest.resources.requests.cpu: 1500m is more than the limit, 1",
    ),
    "no port": (("cluster", "--set=kafka.bootstrapServers=k:0"), "kafka.bootstrapServers: port 0 is not between 1 and 65535"),
    "no such port": (("cluster", "--set=cassandra.contactPoints=c:99999"), "cassandra.contactPoints: port 99999 is not between"),
    "two ports": (("cluster", "--set=cassandra.contactPoints=a:9042\\,b:9043"), "cassandra.contactPoints: has 2 ports; all nodes have one"),
    "a label that selects": (
        ("cluster", "--set=pod.labels.app\\.kubernetes\\.io/component=mine"),
        "pod.labels.app.kubernetes.io/component: pods are selected by it; leave it out",
    ),
    "the name as a label": (("embedded", "--set=pod.labels.app\\.kubernetes\\.io/name=mine"), "pod.labels.app.kubernetes.io/name: pods"),
    "the release as a label": (
        ("cluster", "--set=pod.labels.app\\.kubernetes\\.io/instance=mine"),
        "pod.labels.app.kubernetes.io/instance",
    ),
    "nothing to scrape": (
        ("cluster", "--set=metrics.serviceMonitor.enabled=true"),
        "metrics.serviceMonitor.enabled: there is nothing to scra",
    ),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_a_value_that_cannot_be_is_refused(case: str) -> None:
    """The message names the value and the rule, or what to do."""
    arguments, said = REFUSED[case]
    assert said in refusal(*arguments)


@pytest.mark.parametrize(
    "options",
    [
        "settings.query_warm_entities_max=65027",
        "settings.query_warm_entities_max=0,query.warmSize=1k",
        "settings.query_warm_ms_max=119999,settings.query_workers=2,query.resources.limits.memory=2Gi",
        "settings.query_warm_ms_max=600000",
    ],
)
def test_a_value_that_just_can_be_is_taken(options: str) -> None:
    """What is beside those that are refused."""
    assert template("cluster", f"--set={options}")


def test_all_problems_are_said_at_once() -> None:
    """Nobody must find them one by one."""
    said = refusal("cluster", NO_SECRET, "--set=image.tag=latest", "--set=projector.replicas=40")
    assert "kafka.passwordSecret.name: " in said
    assert "image.tag: " in said
    assert "projector.replicas: " in said


def test_the_schema_has_the_settings_of_the_service() -> None:
    """With their bounds; a new setting can be given at once."""
    assert with_settings(SCHEMA.read_text("utf-8")) == SCHEMA.read_text("utf-8"), "run: python -m tests.docs.tables"


def test_the_readme_has_the_values() -> None:
    """With their defaults and meanings."""
    page = (CHART / "README.md").read_text("utf-8")
    assert values_table() in page, "run: python -m tests.docs.tables"
    assert with_table(page) == page


def test_every_value_is_documented() -> None:
    """Has a comment, and a place in the schema that allows nothing beside it."""
    documented = {value.path: value for value in documented_values()}
    assert [path for path, value in documented.items() if not value.meaning] == []
    (values,) = parsed((CHART / "values.yaml").read_text("utf-8"))
    schema = json.loads(SCHEMA.read_text("utf-8"))

    def walk(path: str, value: object, rules: dict[str, object]) -> None:
        if "$ref" in rules:
            rules = schema["$defs"][str(rules["$ref"]).rpartition("/")[2]]
        if path in documented:
            return
        assert isinstance(value, dict), path
        assert rules.get("additionalProperties") is False, path
        properties = rules["properties"]
        assert isinstance(properties, dict)
        assert set(value) == set(properties) - {"global"}, path  # helm's own
        for name, below in value.items():
            walk(f"{path}.{name}" if path else name, below, properties[name])

    walk("", values, schema)


def test_settings_of_its_own_values_exist() -> None:
    """What `settings` must not have is a setting, and every setting that the chart gives is one of these."""
    listed = set(_own_values())
    assert listed <= set(catalogue())
    given = {
        variable["name"].removeprefix("WATERTOWER_").lower()
        for preset in PRESETS
        for made in objects(preset, "--set=metrics.enabled=true")
        for container in made.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])
        for variable in container["env"]
    }
    assert given <= listed
    assert given >= {"metrics_host", "ingest_metrics_port", "projector_metrics_port", "query_metrics_port"}


@pytest.mark.parametrize(
    ("value", "word"), [("67108864", "67108864"), ("1e3", "1000"), ("3", "3")], ids=["a large number", "with an exponent", "a small number"]
)
def test_a_setting_reaches_every_process_as_it_was_meant(value: str, word: str) -> None:
    """Numbers of templates would be 6.7108864e+07."""
    given = [
        variable["value"]
        for made in objects("cluster", f"--set-json=settings.kafka_prefetch_bytes={value}")
        for container in made.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])
        for variable in container["env"]
        if variable["name"] == "WATERTOWER_KAFKA_PREFETCH_BYTES"
    ]
    assert given == [word] * 5


def test_lint_finds_nothing() -> None:
    """helm's own rules, strictly."""
    for preset in PRESETS:
        ran = helm("lint", "--strict", CHART, "--values", CHART / "presets" / f"{preset}.yaml")
        assert ran.code == 0, ran.out + ran.err


def test_a_switched_off_part_is_not_there() -> None:
    """What can be switched off is."""
    made = template(
        "cluster",
        "--set=networkPolicy.enabled=false,setup.enabled=false,serviceAccount.create=false,topologySpread.enabled=false",
        *(f"--set={role}.podDisruptionBudget.enabled=false" for role in ("ingest", "projector", "query")),
    )
    kinds = {one["kind"] for one in parsed(made)}
    assert kinds == {"ConfigMap", "Service", "Deployment"}
    assert "topologySpreadConstraints" not in made


def _own_values() -> dict[str, str]:
    text = (CHART / "templates" / "_settings.tpl").read_text("utf-8")
    body = text.partition('{{- define "watertower.ownValues" -}}')[2].partition("{{- end -}}")[0]
    found: dict[str, str] = json.loads(body)
    return found
