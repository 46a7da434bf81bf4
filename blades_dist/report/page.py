"""Self-contained HTML pages: no script, nothing loaded, light and dark, everything escaped."""

import base64
import json
import math
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def render(package: str, template: str, **values: Any) -> str:
    """A page of ``package``'s templates, which extend ``page.html.j2`` and use the macros of ``parts.html.j2``.

    Filters: ``uri``, an image's bytes as a data URI; ``pretty``, plain values as indented JSON.
    """
    return _environment(package).get_template(template).render(values)


def without_nan(value: Any) -> Any:
    """Nested dictionaries, lists and plain values with null for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@cache
def _environment(package: str) -> Environment:
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("blades_dist.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"uri": _data_uri, "pretty": _pretty}
    return made


def _pretty(value: Any) -> str:
    return json.dumps(without_nan(value), indent=1, ensure_ascii=False, default=str)


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
