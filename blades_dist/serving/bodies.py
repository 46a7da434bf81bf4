"""Images out of request bodies: raw, a form's files, or base64 in JSON. What an image is, its own bytes say."""

import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile

from blades_dist.serving.problems import Refused

_BINARY = {"type": "string", "format": "binary"}
_BASE64 = {"type": "string", "contentEncoding": "base64", "description": "an image file in base64"}


def _form(value: dict[str, Any]) -> dict[str, Any]:
    return {"schema": {"type": "object", "required": ["file"], "properties": {"file": value}}}


ONE_IMAGE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "a JPEG, PNG, WebP or TIFF image: field `file` of a form, the body itself, or base64 in JSON",
        "content": {
            "multipart/form-data": _form(_BINARY),
            "application/json": {"schema": {"type": "object", "required": ["image"], "properties": {"image": _BASE64}}},
            **{kind: {"schema": _BINARY} for kind in ("image/*", "application/octet-stream")},
        },
    }
}
MANY_IMAGES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "images: any number of fields `file` of a form, or base64 in JSON",
        "content": {
            "multipart/form-data": _form({"type": "array", "items": _BINARY}),
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {"images": {"type": "array", "items": _BASE64, "minItems": 1}},
                }
            },
        },
    }
}


@dataclass(frozen=True)
class Upload:
    """One image file as it came; its name is told to nobody but the sender."""

    data: bytes
    filename: str | None = field(default=None, repr=False)


async def one_image(request: Request) -> bytes:
    """The image of a request.

    Raises:
        Refused: 400 ``no_file`` or ``bad_body``.
    """
    kind = _kind(request)
    if kind == "multipart/form-data":
        async with request.form(max_files=1, max_fields=4) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise Refused(400, "no_file", "the form has no file in a field named 'file'")
            return await file.read()
    body = await request.body()
    if kind != "application/json":
        return body
    return _decoded(_document(body).get("image"), "image")


async def many_images(request: Request, most: int) -> tuple[list[Upload], str | None]:
    """The images of a batch or job, 1 to ``most``, and the ``webhook`` that its body names.

    Raises:
        Refused: 400 ``no_file`` or ``bad_body``, 413 ``too_many``, 415 ``bad_type``.
    """
    kind = _kind(request)
    if kind == "multipart/form-data":
        # Far above the bound, so that too many files are answered as such and not as a damaged form.
        async with request.form(max_files=10 * most, max_fields=8) as form:
            files = [value for value in form.getlist("file") if isinstance(value, UploadFile)]
            _check_count(len(files), most, "the form has no file in a field named 'file'")
            webhook = form.get("webhook")
            uploads = [Upload(await file.read(), file.filename) for file in files]
            return uploads, webhook if isinstance(webhook, str) else None
    if kind != "application/json":
        raise Refused(415, "bad_type", "many images come as multipart/form-data or application/json")
    document = _document(await request.body())
    images, webhook = document.get("images"), document.get("webhook")
    if not isinstance(images, list) or not (webhook is None or isinstance(webhook, str)):
        raise Refused(400, "bad_body", 'expected {"images": ["BASE64", ...]}, and "webhook" to be a URL if given')
    _check_count(len(images), most, "the list of images is empty")
    return [Upload(_decoded(image, f"images[{i}]")) for i, image in enumerate(images)], webhook


async def json_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        Refused: 400 ``bad_body``, 415 ``bad_type``.
    """
    if _kind(request) not in ("application/json", ""):
        raise Refused(415, "bad_type", "expected application/json")
    return _document(await request.body())


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _check_count(count: int, most: int, none: str) -> None:
    if not count:
        raise Refused(400, "no_file", none)
    if count > most:
        raise Refused(413, "too_many", f"{count} images; the limit is {most}")


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "bad_body", "the body is not JSON") from None
    if not isinstance(document, dict):
        raise Refused(400, "bad_body", "the body is not a JSON object")
    return document


def _decoded(value: object, where: str) -> bytes:
    if not isinstance(value, str):
        raise Refused(400, "bad_body", f"{where} is not a string of base64")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, "bad_body", f"{where} is not base64") from None
