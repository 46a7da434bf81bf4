"""Self-contained HTML pages: no script, nothing loaded, light and dark, everything escaped."""

import base64
import json
import math
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def environment(package: str) -> Environment:
    """Templates of ``package``, and those that all pages share.

    Filters: ``uri``, an image's bytes as a data URI; ``pretty``, plain values as indented JSON.
    """
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("blades_dist")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"uri": _data_uri, "pretty": _pretty}
    return made


def without_nan(value: Any) -> Any:
    """Nested dictionaries, lists and plain values with null for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _pretty(value: Any) -> str:
    return json.dumps(without_nan(value), indent=1, ensure_ascii=False, default=str)


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
