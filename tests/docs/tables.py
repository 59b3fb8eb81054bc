"""The tables of the pages that are made from the code's own catalogues: settings, commands and metrics.

`python -m tests.docs.tables` rewrites them between their markers, in all pages the files that they show, and what the Helm chart has of
them; test_reference.py, test_pages.py and tests/deploy fail while something differs.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from tests.deploy import chart
from tests.docs.pages import PAGES, with_files
from watertower import config
from watertower.cli import app
from watertower.metrics import CATALOGUE

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def settings_table() -> str:
    """One table per section: name, environment variable, default, bounds, meaning (which says the unit)."""
    parts = []
    for prefix, section in config.SECTIONS.items():
        rows = []
        properties = section.model_json_schema()["properties"]
        for field, info in section.model_fields.items():
            name = prefix + field
            cells = [f"`{name}`", f"`WATERTOWER_{name.upper()}`", f"`{info.default}`", _bounds(properties[field]), info.description or ""]
            rows.append("| " + " | ".join(cells) + " |")
        title = f"{(section.__doc__ or '').strip().rstrip('.')}"
        parts.append(f"### {title}\n\n| setting | environment | default | allowed | meaning |\n|---|---|---|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts)


def commands_table() -> str:
    """Every command with its usage, what it does, and its arguments and options."""
    parts = []
    for path, command in commands():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join([path, *(p.metavar or p.name.upper() for p in arguments)])
        rows = [_row(parameter) for parameter in command.params]
        text = "\n\n".join(" ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n"))
        table = "| argument, option | default | meaning |\n|---|---|---|\n" + "\n".join(rows)
        parts.append(f"### `{usage}`\n\n{text}\n\n{table}")
    return "\n\n".join(parts)


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its full name, in the order of the help."""
    yield from _walk("watertower", typer.main.get_command(app))


def _walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", None)
    if below is None:
        yield path, command
        return
    for name, sub in below.items():
        yield from _walk(f"{path} {name}", sub)


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"| `{parameter.metavar or parameter.name.upper()}` | required | {_plain(parameter.help)} |"
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    default = parameter.default
    if isinstance(parameter.show_default, str):
        default = parameter.show_default
    shown = "" if default is None or default is False else f"`{_option_value(parameter, default)}`"
    if parameter.envvar:
        shown += f", or `{parameter.envvar}`"
    return f"| {names} | {shown} | {_plain(parameter.help)} |"


def _option_value(parameter: Any, default: Any) -> str:
    return str(parameter.opts[0]) if default is True else str(default)


def _plain(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


def _bounds(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") != "integer":
        return ""
    least = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
    most = schema.get("maximum")
    return f"{least:,} or more" if most is None else f"{least:,} to {most:,}"


def metrics_table() -> str:
    """Every metric, with the roles that have it, its labels and its kind."""
    roles: dict[str, list[str]] = {}
    for role, described in CATALOGUE.items():
        for name in described:
            roles.setdefault(name, []).append(role)
    rows = []
    for name, of in roles.items():
        kind, labels, meaning = CATALOGUE[of[0]][name]
        shown = ", ".join(f"`{label}`" for label in labels)
        rows.append(f"| `{name}` | {', '.join(of) if len(of) < len(CATALOGUE) else 'all'}: {kind} | {shown} | {meaning} |")
    return "| metric | of, and kind | labels | meaning |\n|---|---|---|---|\n" + "\n".join(rows)


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "settings": ("settings.md", settings_table),
    "commands": ("cli.md", commands_table),
    "metrics": ("../operating.md", metrics_table),
}
"""By name, the page of docs/reference, or beside it, and what writes the table."""


def section_of(name: str, text: str) -> re.Match[str]:
    """Where a page has the table: between `<!-- table NAME -->` and `<!-- end NAME -->`."""
    found = re.search(rf"(?<=<!-- table {name} -->\n\n).*?(?=\n\n<!-- end {name} -->)", text, re.DOTALL)
    if found is None:
        raise ValueError(f"the page has no place for the table {name!r}")
    return found


def main() -> None:
    """Writes all tables, the files that pages show, and the chart's schema and table."""
    for name, (file, table) in TABLES.items():
        path = REFERENCE / file
        text = path.read_text("utf-8")
        place = section_of(name, text)
        path.write_text(text[: place.start()] + table() + text[place.end() :], "utf-8")
    for page in PAGES:
        page.write_text(with_files(page.read_text("utf-8")), "utf-8")
    chart.write()


if __name__ == "__main__":
    main()
