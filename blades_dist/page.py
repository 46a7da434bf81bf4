"""Self-contained HTML pages: no script, nothing loaded, light and dark, everything escaped."""

import base64

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def environment(package: str) -> Environment:
    """Templates of ``package``, and those that all pages share. Filter ``uri``: an image's bytes as a data URI."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("blades_dist")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["uri"] = _data_uri
    return made


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
