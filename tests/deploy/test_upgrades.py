"""What the chart makes of what is there already: an upgrade scales nothing down, forgets nothing, and needs Secrets that exist."""

from pathlib import Path

import pytest

from tests.deploy.api import NAMESPACE, serving
from tests.deploy.chart import Object, parsed, upgraded

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
