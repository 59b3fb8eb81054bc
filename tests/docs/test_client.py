"""The client's page says what the client's code says: every option, error and call."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

from watertower import client
from watertower.client import Client, ClientError, ClientOptions

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "client.md").read_text("utf-8")


def test_every_option_is_documented() -> None:
    """With its default; nothing else is documented as one."""
    section = PAGE.partition("\n## Options")[2]
    documented = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", section, re.MULTILINE))
    assert documented == {field.name: f"{field.default:,}" for field in fields(ClientOptions)}


def test_every_option_that_is_a_limit_is_in_the_limits() -> None:
    """With its default, in the order of the names where a row has two."""
    section = (DOCS / "reference" / "limits.md").read_text("utf-8").partition("\n## The Python client")[2].partition("\n## ")[0]
    documented = {}
    for names, values in re.findall(r"^\| (`[\w`, ]+`) \| ([\d,]+(?:, [\d,]+)*) \|", section, re.MULTILINE):
        documented.update(zip(re.findall(r"\w+", names), values.split(", "), strict=True))
    assert documented == {field.name: f"{field.default:,}" for field in fields(ClientOptions) if "max" in field.name}


def test_every_error_is_documented() -> None:
    """With whether it may be worth repeating."""
    section = PAGE.partition("\n## Errors")[2].partition("\n## ")[0]
    documented = dict(re.findall(r"^\| `(\w+)` \|.*\| (yes|no) \|$", section, re.MULTILINE))
    public = [getattr(client, name) for name in client.__all__]
    errors = [value for value in public if inspect.isclass(value) and issubclass(value, ClientError) and value is not ClientError]
    assert documented == {error.__name__: "yes" if error.retryable else "no" for error in errors}


def test_every_call_is_documented() -> None:
    """In the page's table of calls."""
    calls = {name for name, _ in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")} - {"session", "close"}
    assert calls <= set(re.findall(r"`(\w+)`", PAGE.partition("| call |")[2].partition("\n\n")[0]))
