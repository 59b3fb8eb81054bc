#!/usr/bin/env python3
"""JSON schemas of Kubernetes' kinds, of KEDA's, of K8ssandra's and of the Prometheus operator's ServiceMonitor:
for kubeconform, without a network.

Prints the folder that has them, one file a kind: KIND-GROUP-VERSION.json in lower case. They are made from what the Go modules of
schemas.sum have in them: Kubernetes' own OpenAPI document, and CustomResourceDefinitions. Modules come from Go's proxy and must have the
sums that schemas.sum says. Strict: a property that the schema does not have is refused, as an API server does that is asked to be strict.

    schemas.py            makes what is missing (needs Go)
    schemas.py --cached   fails instead
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SUMS = HERE / "schemas.sum"

OPENAPI = "api/openapi-spec/swagger.json"
CRDS = {
    "github.com/k8ssandra/k8ssandra-operator": "config/crd/bases/k8ssandra.io_k8ssandraclusters.yaml",
    "github.com/kedacore/keda/v2": "config/crd/bases/keda.sh_*.yaml",
    "github.com/prometheus-operator/prometheus-operator": "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
}
"""Per module, where its CustomResourceDefinitions are."""

NUMBER_OR_WORD = {"anyOf": [{"type": "string"}, {"type": "number"}]}
_DEFINITION = "#/definitions/"

Schema = dict[str, Any]


def main() -> None:
    """Prints the folder. Exits with what is wrong."""
    cache = Path(os.environ.get("WATERTOWER_ENGINES_CACHE") or Path.home() / ".cache" / "watertower" / "engines").parent / "kubernetes"
    digest = hashlib.sha256(Path(__file__).read_bytes() + SUMS.read_bytes()).hexdigest()[:16]
    done = cache / f"schemas-{digest}"
    if not done.is_dir():
        if "--cached" in sys.argv[1:]:
            sys.exit("the schemas of Kubernetes are not made: run deploy/test-cluster/schemas.py")
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / "schemas.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.is_dir():
                _make(cache, done)
    print(done)


def _make(cache: Path, done: Path) -> None:
    part = Path(tempfile.mkdtemp(prefix=".schemas-", dir=cache))
    try:
        for line in SUMS.read_text().splitlines():
            module, version, wanted = line.split()
            folder = _downloaded(module, version, wanted)
            if module in CRDS:
                for path in sorted(folder.glob(CRDS[module])):
                    for crd in json.loads(_run([_yaml2json()], path.read_bytes())):
                        _write_crd(part, crd)
            else:
                _write_kinds(part, json.loads((folder / OPENAPI).read_bytes())["definitions"])
        part.chmod(0o755)
        part.rename(done)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _downloaded(module: str, version: str, wanted: str) -> Path:
    """The folder of a module, with the sum that it must have."""
    found = json.loads(_run(["go", "mod", "download", "-json", f"{module}@{version}"]))
    if found["Sum"] != wanted:
        sys.exit(f"{module}@{version} has the sum {found['Sum']}, not {wanted}: it is not what schemas.sum was made for")
    return Path(found["Dir"])


def _yaml2json() -> str:
    return str(Path(_run([str(HERE / "tools.sh")]).decode().strip()) / "yaml2json")


def _run(command: list[str], given: bytes = b"") -> bytes:
    done = subprocess.run(command, input=given, stdout=subprocess.PIPE, cwd=tempfile.gettempdir(), check=False)  # noqa: S603 - no go.mod of ours there
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")
    return done.stdout


def _write_kinds(part: Path, definitions: dict[str, Schema]) -> None:
    strict = {name: _strict(_told(name, schema)) for name, schema in definitions.items()}
    for name, schema in definitions.items():
        for kind in schema.get("x-kubernetes-group-version-kind", []):
            if len(schema["x-kubernetes-group-version-kind"]) == 1:  # not what every group has, as DeleteOptions
                whole = _of_kind(strict[name], kind["group"], kind["version"], kind["kind"])
                whole["definitions"] = {needed: strict[needed] for needed in _needed(strict[name], strict)}
                _write(part, whole, kind["group"], kind["version"], kind["kind"])


def _told(name: str, schema: Schema) -> Schema:
    """What the OpenAPI document does not say of three types that are written in two ways."""
    if name.endswith(("pkg.api.resource.Quantity", "pkg.util.intstr.IntOrString")):
        return NUMBER_OR_WORD
    return schema


def _write_crd(part: Path, crd: Schema) -> None:
    spec = crd["spec"]
    for version in spec["versions"]:
        schema = _strict(version["schema"]["openAPIV3Schema"])
        kind = spec["names"]["kind"]
        _write(part, _of_kind(schema, spec["group"], version["name"], kind), spec["group"], version["name"], kind)


def _of_kind(schema: Schema, group: str, version: str, kind: str) -> Schema:
    """The schema with the words that name it, which it must have."""
    names = {"apiVersion": {"const": f"{group}/{version}" if group else version}, "kind": {"const": kind}}
    properties = {**schema["properties"], **names}
    return {**schema, "properties": properties, "required": sorted({*schema.get("required", ()), "apiVersion", "kind", "metadata"})}


def _write(part: Path, schema: Schema, group: str, version: str, kind: str) -> None:
    name = "-".join(filter(None, (kind.lower(), group.partition(".")[0], version)))  # as kubeconform asks for it
    (part / f"{name}.json").write_text(json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **schema}))


def _strict(schema: Any) -> Any:
    """The same with no properties but those that it names, and without the words that only Kubernetes knows."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string") or schema.get("format") == "int-or-string":
        return NUMBER_OR_WORD
    kept = {name: value for name, value in schema.items() if not name.startswith("x-kubernetes-") and name not in ("format", "description")}
    made = {name: _strict(value) for name, value in kept.items() if name not in ("properties", "nullable", "default", "enum")}
    if "enum" in kept:
        made["enum"] = kept["enum"]
    if "properties" in kept:
        made["properties"] = {name: _strict(value) for name, value in kept["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    if kept.get("nullable"):
        return {"anyOf": [{"type": "null"}, made]}
    return made


def _needed(schema: Any, definitions: dict[str, Schema]) -> set[str]:
    """The names of all definitions that a schema refers to."""
    found: set[str] = set()
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting.extend(one)
        elif isinstance(one, dict):
            waiting.extend(one.values())
            reference = one.get("$ref")  # or a property that is called so
            name = reference.removeprefix(_DEFINITION) if isinstance(reference, str) else None
            if name and name not in found:
                found.add(name)
                waiting.append(definitions[name])
    return found


if __name__ == "__main__":
    main()
