"""The chart, rendered by helm, and what of it is written from elsewhere: `settings` in its schema, the table of values in its README."""

import json
import re
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from tests.commands import Ran
from tests.needs import skip_or_fail
from watertower import config

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "watertower"
PRESETS = ("embedded", "cluster")
SCHEMA = CHART / "values.schema.json"
TOOLS = ROOT / "deploy" / "test-cluster"
RUN_S = 60.0

Object = dict[str, Any]

_TABLE = re.compile(r"(?<=<!-- table values -->\n\n).*?(?=\n\n<!-- end values -->)", re.DOTALL)


@lru_cache
def cached(script: str) -> Path:
    """The folder that a script of deploy/test-cluster has made. Without it, skips the test, or fails it where everything is required."""
    made = subprocess.run([TOOLS / script, "--cached"], capture_output=True, text=True, timeout=RUN_S, check=False)
    if made.returncode:
        skip_or_fail(made.stderr.strip())
    return Path(made.stdout.strip())


def helm(*arguments: object) -> Ran:
    """Runs helm."""
    done = subprocess.run(
        [cached("tools.sh") / "helm", *map(str, arguments)], capture_output=True, text=True, timeout=RUN_S, cwd=ROOT, check=False
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def template(preset: str, *options: object, release: str = "watertower") -> str:
    """What the chart makes of a preset and further options, as YAML."""
    ran = _template(preset, options, release)
    assert ran.code == 0, ran.err
    return ran.out


@lru_cache
def objects(preset: str, *options: object) -> list[Object]:
    """The same, taken apart. Not to be changed: who asks for the same again gets the same."""
    return parsed(template(preset, *options))


def refusal(preset: str, *options: object) -> str:
    """What helm says to values that cannot be."""
    ran = _template(preset, options)
    assert ran.code != 0, "it was not refused"
    return ran.err


def upgraded(kubeconfig: Path, preset: str, *options: object, release: str = "watertower") -> Ran:
    """What `helm template` does where `lookup` finds what an API server has."""
    return _template(preset, ("--dry-run=server", "--kubeconfig", kubeconfig, *options), release)


def parsed(text: str) -> list[Any]:
    """Every document of a YAML text."""
    done = subprocess.run([cached("tools.sh") / "yaml2json"], input=text, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


def schema_problems(text: str) -> str:
    """What is wrong with objects by Kubernetes' own schemas, strictly; empty if nothing. A kind without a schema is wrong."""
    where = f"{cached('schemas.py')}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    done = subprocess.run(
        [cached("tools.sh") / "kubeconform", "-strict", "-schema-location", where],
        input=text,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    return (done.stdout + done.stderr) if done.returncode else ""


class Value(NamedTuple):
    """A value of values.yaml, as its comment and its line say."""

    path: str
    default: str
    meaning: str


def documented_values() -> list[Value]:
    """The values in order. A comment right above a key is its meaning."""
    found: list[Value] = []
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in (CHART / "values.yaml").read_text("utf-8").splitlines():
        indent = len(line) - len(line.lstrip())
        text = line.strip()
        if text.startswith("# "):
            comment.append(text.removeprefix("# "))
        elif not text:
            comment = []
        else:
            name, _, default = text.partition(":")
            path = [*(part for part in path if part[0] < indent), (indent, name)]
            if default:
                found.append(Value(".".join(part for _, part in path), default.strip(), " ".join(comment)))
            comment = []
    return found


def values_table() -> str:
    """For the chart's README."""
    rows = [f"| `{value.path}` | `{value.default}` | {value.meaning} |" for value in documented_values()]
    return "| value | default | meaning |\n|---|---|---|\n" + "\n".join(rows)


def settings_schema() -> Object:
    """What `settings` may have: every setting of the service with its bounds. The chart itself refuses those that it sets, and says why."""
    properties = {}
    for prefix, section in config.SECTIONS.items():
        for field, rules in section.model_json_schema()["properties"].items():
            properties[prefix + field] = {name: rule for name, rule in rules.items() if name not in ("title", "default", "format")}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def with_settings(schema: str) -> str:
    """The chart's schema with the settings as they are now."""
    whole = json.loads(schema)
    whole["properties"]["settings"] = settings_schema()
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def with_table(page: str) -> str:
    """The chart's README with the table of values as they are now."""
    return _TABLE.sub(lambda _: values_table(), page)


def write() -> None:
    """Writes what is made from elsewhere."""
    SCHEMA.write_text(with_settings(SCHEMA.read_text("utf-8")), "utf-8")
    readme = CHART / "README.md"
    readme.write_text(with_table(readme.read_text("utf-8")), "utf-8")


@lru_cache
def _template(preset: str, options: tuple[object, ...], release: str = "watertower") -> Ran:
    return helm("template", release, CHART, "--namespace", "watertower", "--values", CHART / "presets" / f"{preset}.yaml", *options)
