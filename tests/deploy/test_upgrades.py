"""What the chart makes of what is there already: an upgrade scales nothing down, forgets nothing, and needs Secrets that exist."""

from pathlib import Path

import pytest

from tests.deploy.api import NAMESPACE, serving
from tests.deploy.chart import Object, objects, parsed, upgraded

SECRETS = {"watertower": "password", "log-cluster-ca-cert": "ca.crt", "store-superuser": "password"}
"""Those that the preset for clusters takes, and their keys."""


def there(kind: str, name: str, **fields: object) -> Object:
    """An object of the namespace."""
    return {
        "apiVersion": "apps/v1" if kind == "Deployment" else "v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE},
        **fields,
    }


def secrets(**others: str) -> list[Object]:
    """SECRETS as objects."""
    return [there("Secret", name, data={key: "eA=="}) for name, key in {**SECRETS, **others}.items()]


def deployments(replicas: int) -> list[Object]:
    """Those of the release, with so many pods each."""
    return [there("Deployment", f"watertower-{role}", spec={"replicas": replicas}) for role in ("ingest", "projector", "query")]


@pytest.mark.parametrize(("pods", "kept"), [(5, 5), (2, 3)], ids=["more than the least", "fewer than the least"])
def test_switching_a_scaler_on_takes_no_pod_away(tmp_path: Path, pods: int, kept: int) -> None:
    """A manifest without `replicas`, after one that had it, would set it to 1: the chart writes down the number that is there."""
    scalers = "ingest.autoscaling.enabled=true,query.autoscaling.enabled=true,projector.keda.enabled=true"
    least = "ingest.autoscaling.minReplicas=3,query.autoscaling.minReplicas=3,projector.keda.minReplicas=3"
    with serving(tmp_path, *secrets(), *deployments(pods)) as api:
        ran = upgraded(api, "cluster", f"--set={scalers},{least}")
    assert ran.code == 0, ran.err
    found = [one["spec"]["replicas"] for one in parsed(ran.out) if one["kind"] == "Deployment"]
    assert found == [kept] * 3


def test_without_a_scaler_the_values_say_how_many(tmp_path: Path) -> None:
    """Whatever is there."""
    with serving(tmp_path, *secrets(), *deployments(5)) as api:
        ran = upgraded(api, "cluster")
    assert ran.code == 0, ran.err
    assert [one["spec"]["replicas"] for one in parsed(ran.out) if one["kind"] == "Deployment"] == [2] * 3


@pytest.mark.parametrize(
    ("there_is", "said"),
    [
        (
            secrets()[1:],
            "kafka.passwordSecret.name: namespace watertower has no Secret watertower; make it: "
            "kubectl create secret generic watertower --namespace watertower --from-literal=password=PASSWORD",
        ),
        (
            [secrets()[0], secrets()[2]],
            "kafka.caSecret.name: namespace watertower has no Secret log-cluster-ca-cert; make it: "
            "kubectl create secret generic log-cluster-ca-cert --namespace watertower --from-file=ca.crt=FILE",
        ),
        (
            secrets(**{"store-superuser": "passwort"}),
            "cassandra.passwordSecret.key: Secret store-superuser has no password, but passwort; set one of these",
        ),
    ],
    ids=["no Secret", "no certificates", "no key"],
)
def test_a_secret_must_be_there(tmp_path: Path, there_is: list[Object], said: str) -> None:
    """Pods without one would wait for it in silence; the message has the command that makes it."""
    with serving(tmp_path, *there_is) as api:
        ran = upgraded(api, "cluster")
    assert ran.code != 0
    assert said in ran.err
    assert ran.err.count("Secret ") <= 2


def test_a_secret_must_be_there_before_its_namespace(tmp_path: Path) -> None:
    """With --create-namespace helm makes the namespace after it has rendered."""
    with serving(tmp_path, namespace=False) as api:
        ran = upgraded(api, "cluster")
    assert ran.code != 0
    assert ran.err.count("make it before its Secrets: kubectl create namespace watertower\n") == 1
    for name in SECRETS:
        assert f"has no Secret {name}; make it: " in ran.err


@pytest.mark.parametrize(
    ("preset", "value", "other", "has"),
    [
        ("cluster", "partitions", "8", "16"),
        ("cluster", "fullnameOverride", "other", "watertower"),
        ("cluster", "nameOverride", "tower", "watertower"),  # the objects keep their names: those are of the release's
        ("embedded", "nameOverride", "tower", "watertower"),
        ("cluster", "kafka.prefix", "other", "watertower"),
        ("cluster", "cassandra.keyspace", "other", "watertower"),
        ("embedded", "embedded.storage.size", "30Gi", "20Gi"),
        ("embedded", "embedded.storage.className", "fast", ""),
    ],
)
def test_what_cannot_change_is_compared(tmp_path: Path, preset: str, value: str, other: str, has: str) -> None:
    """With what the release was installed with; the message says what it was. The same values are taken again."""
    (remembered,) = (one for one in objects(preset) if one["kind"] == "ConfigMap")
    remembered = {**remembered, "metadata": {**remembered["metadata"], "namespace": NAMESPACE}}
    with serving(tmp_path, *secrets(), remembered) as api:
        same, changed = upgraded(api, preset), upgraded(api, preset, f"--set={value}={other}")
    assert same.code == 0, same.err
    assert changed.code != 0
    assert f'{value}: this release has "{has}"' in changed.err


def test_another_mode_is_refused(tmp_path: Path) -> None:
    """Its data would stay behind."""
    (remembered,) = (one for one in objects("embedded") if one["kind"] == "ConfigMap")
    with serving(tmp_path, *secrets(), {**remembered, "metadata": {**remembered["metadata"], "namespace": NAMESPACE}}) as api:
        ran = upgraded(api, "cluster")
    assert 'mode: this release has "embedded" and its data would stay behind' in ran.err


def test_a_release_whose_name_cannot_begin_a_service(tmp_path: Path) -> None:
    """Is told to have its objects called otherwise."""
    with serving(tmp_path, *secrets()) as api:
        ran = upgraded(api, "cluster", release="9a.b")
    assert "fullnameOverride: names of Services begin with a letter" in ran.err
    with serving(tmp_path, *secrets()) as api:
        ran = upgraded(api, "cluster", "--set=fullnameOverride=nine", release="9a.b")
    assert ran.code == 0, ran.err
