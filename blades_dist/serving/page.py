"""The page at ``/`` and its files, as they lie in the folder ``page``; nothing else is ever served from the disk."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import Response

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
    """Routes for the files that are there when the application starts; they are read once."""
    for file in sorted(folder.glob("*")) if folder.is_dir() else []:
        if file.suffix in _TYPES:
            _add(app, "/" if file.name == "index.html" else f"/page/{file.name}", file)


def _add(app: FastAPI, path: str, file: Path) -> None:
    content, kind = file.read_bytes(), _TYPES[file.suffix]

    @app.get(path, include_in_schema=False)
    async def show() -> Response:
        return Response(content, media_type=kind, headers={"content-security-policy": CSP, "cache-control": "no-cache"})
