"""The page at ``/``: its files, as they lie in the folder ``page``, and a script made of the table of tags.

Nothing else is ever served from the disk.
"""

import json
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import Response

from blades_dist.tags import EXIF_TAGS

FOLDER = Path(__file__).with_name("page")
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
_TYPES |= {".svg": "image/svg+xml", ".png": "image/png", ".ico": "image/x-icon"}


def add_page(app: FastAPI, folder: Path = FOLDER) -> None:
    """Routes for the files that are there when the application starts, which are read once, and for ``tags.js``."""
    _add(app, "/page/tags.js", tags_script().encode(), _TYPES[".js"])
    for file in sorted(folder.glob("*")) if folder.is_dir() else []:
        if file.suffix in _TYPES:
            path = "/" if file.name == "index.html" else f"/page/{file.name}"
            _add(app, path, file.read_bytes(), _TYPES[file.suffix])


def tags_script() -> str:
    """The module ``tags.js``: what people are told each tag is, by its name in answers."""
    words = {tag.name: tag.words for tag in EXIF_TAGS}
    return f"export const TAG_WORDS = {json.dumps(words, indent=2)};\n"


def _add(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    @app.get(path, include_in_schema=False)
    async def show() -> Response:
        return Response(content, media_type=kind, headers={"content-security-policy": CSP, "cache-control": "no-cache"})
