"""Errors of requests as problem details (RFC 9457)."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from blades_dist.serving.schema import Problem

PROBLEM_TYPE = "application/problem+json"
RETRY_SECONDS = 1
TITLES = {
    400: "The request cannot be read",
    401: "A token is needed",
    403: "Not allowed from there",
    404: "No such resource",
    405: "Method not allowed",
    408: "The request did not arrive in time",
    409: "The request cannot be done now",
    413: "Too large",
    415: "Format not allowed",
    422: "Nothing to judge",
    429: "Too many jobs",
    431: "The header is too large",
    500: "Internal error",
    503: "Busy",
    504: "The answer took too long",
}
# What a reason code of ``records.REASONS`` means as an HTTP status; and the service's own.
STATUS_OF_REASON = {
    "empty": 400,
    "unreadable": 400,
    "truncated": 400,
    "bad_sidecar": 400,
    "bad_parameter": 400,
    "too_large": 413,
    "unsupported": 415,
    "no_face": 422,
    "face_too_small": 422,
    "busy": 503,
    "deadline": 504,
}


class Refused(Exception):
    """A request, or one image of it, that gets a problem for an answer. ``reason`` is the stable code."""

    def __init__(self, status: int, reason: str, detail: str) -> None:
        super().__init__(status, reason, detail)  # all of them, since it travels between processes
        self.status, self.reason, self.detail = status, reason, detail

    def problem(self, request_id: str) -> Problem:
        """The document that says so."""
        title = TITLES.get(self.status, "Request refused")
        return Problem(title=title, status=self.status, detail=self.detail, reason=self.reason, request_id=request_id)


def unusable(reason: str, detail: str) -> Refused:
    """The refusal of an image for one of ``STATUS_OF_REASON``."""
    return Refused(STATUS_OF_REASON.get(reason, 400), reason, detail)


def busy(detail: str) -> Refused:
    """More work than can be queued; to be tried again."""
    return Refused(503, "busy", detail)


def problem_response(refused: Refused, request_id: str) -> Response:
    """A refusal as an HTTP answer."""
    headers = {}
    if refused.status in (429, 503):
        headers["retry-after"] = str(RETRY_SECONDS)
    if refused.status == 401:
        headers["www-authenticate"] = 'Bearer realm="blades"'
    if refused.status in (408, 413, 431):
        headers["connection"] = "close"  # the rest of the request is not worth reading
    return Response(refused.problem(request_id).model_dump_json(), refused.status, headers, PROBLEM_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These problems as FastAPI's ``responses``."""
    content = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    retry = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds to wait before another attempt"}}
    return {
        status: {"description": TITLES[status], "content": content}
        | ({"headers": retry} if status in (429, 503) else {})
        for status in statuses
    }


def add_handlers(app: FastAPI) -> None:
    """Refusals of routes become problem documents; for other exceptions ``middleware.RequestContext`` does it."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return _respond(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        found = "; ".join(f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}" for item in error.errors())
        return _respond(request, Refused(400, "bad_parameter", found))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        reason = {400: "bad_request", 404: "not_found", 405: "bad_method"}.get(error.status_code, "http")
        answer = _respond(request, Refused(error.status_code, reason, str(error.detail)))
        answer.headers.update(error.headers or {})
        return answer


def _respond(request: Request, refused: Refused) -> Response:
    request.scope["reason"] = refused.reason  # for the line in the log
    return problem_response(refused, request.scope.get("request_id", ""))
