"""A client of the service, on the standard library alone: copy the file, or import it.

client = Client("http://127.0.0.1:8000")
for face in client.detect(Path("photo.jpg"))["faces"]:
    print(face["verdict"], face["p_value"])
"""

import base64
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from email.message import Message
from pathlib import Path
from typing import Any, Literal

Image = Path | bytes


class ServiceProblem(Exception):
    """The service refused: ``status``, its stable ``reason``, a ``detail`` for people, and the ``request_id``."""

    def __init__(self, status: int, reason: str, detail: str, request_id: str, retry_after: float | None) -> None:
        super().__init__(f"{status} {reason}: {detail}")
        self.status, self.reason, self.detail = status, reason, detail
        self.request_id, self.retry_after = request_id, retry_after


class Client:
    """Talks to one service; ``timeout`` in seconds. ``attempts`` at a request that it is too busy for (429, 503), or
    whose connection is refused or lost, which a job is not submitted again for: it may have begun."""

    def __init__(self, url: str, token: str | None = None, timeout: float = 60.0, attempts: int = 5) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"url: {url} is not http:// or https://")
        self._url, self._token, self._timeout, self._attempts = url.rstrip("/"), token, timeout, attempts

    def detect(
        self,
        image: Image,
        fpr: float | None = None,
        faces: Literal["locate", "crop"] = "locate",
        model: str | None = None,
    ) -> dict[str, Any]:
        """The report on one image file, given by its path or its bytes.

        Raises:
            ServiceProblem: the service refused it.
            OSError: the file or the service cannot be reached.
        """
        query = _query(fpr, faces, model)
        return self._ask("POST", f"/v1/detect{query}", _bytes(image), "application/octet-stream")

    def detect_many(
        self,
        images: Sequence[Image],
        fpr: float | None = None,
        faces: Literal["locate", "crop"] = "locate",
        model: str | None = None,
    ) -> list[dict[str, Any]]:
        """One item an image, in order: its report under ``image``, or what is wrong with it under ``problem``."""
        answer = self._ask("POST", f"/v1/detect/batch{_query(fpr, faces, model)}", _document(images))
        return list(answer["results"])

    def submit(
        self,
        images: Sequence[Image],
        fpr: float | None = None,
        faces: Literal["locate", "crop"] = "locate",
        model: str | None = None,
        webhook: str | None = None,
    ) -> str:
        """Begins a job; returns its id."""
        path = f"/v1/jobs{_query(fpr, faces, model)}"
        return str(self._ask("POST", path, _document(images, webhook), safe=False)["id"])

    def job(self, name: str) -> dict[str, Any]:
        """A job as it stands."""
        return self._ask("GET", f"/v1/jobs/{urllib.parse.quote(name, '')}")

    def wait(self, name: str, seconds: float = 600.0) -> list[dict[str, Any]]:
        """The results of a job, as of ``detect_many``.

        Raises:
            TimeoutError: it is not done after ``seconds``.
            RuntimeError: it failed.
        """
        end, pause = time.monotonic() + seconds, 0.1
        while True:
            job = self.job(name)
            if job["status"] == "done":
                return list(job["results"])
            if job["status"] == "failed":
                raise RuntimeError(f"job {name} failed")
            if time.monotonic() + pause > end:
                raise TimeoutError(f"job {name} is {job['status']} after {seconds:g} s")
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def delete(self, name: str) -> None:
        """Ends and forgets a job."""
        self._ask("DELETE", f"/v1/jobs/{urllib.parse.quote(name, '')}")

    def models(self) -> list[dict[str, Any]]:
        """The detectors that answer there."""
        return list(self._ask("GET", "/v1/models")["models"])

    def _ask(
        self, method: str, path: str, body: bytes | None = None, kind: str = "application/json", safe: bool = True
    ) -> dict[str, Any]:
        for attempt in range(1, self._attempts + 1):
            pause = 1.0
            try:
                return self._once(method, path, body, kind)
            except ServiceProblem as problem:
                if problem.status not in (429, 503) or attempt == self._attempts:
                    raise
                pause = problem.retry_after or pause
            except OSError as error:
                lost = isinstance(getattr(error, "reason", error), ConnectionError)
                if not (lost and safe) or attempt == self._attempts:
                    raise
            time.sleep(pause * attempt)
        raise ValueError("attempts: at least 1 is needed")

    def _once(self, method: str, path: str, body: bytes | None, kind: str) -> dict[str, Any]:
        headers = {"Accept": "application/json"} | ({"Content-Type": kind} if body is not None else {})
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self._url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                content = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise _problem(error.code, error.headers, error.read()) from None
        return dict(json.loads(content)) if content else {}


def _bytes(image: Image) -> bytes:
    return image if isinstance(image, bytes) else image.read_bytes()


def _document(images: Sequence[Image], webhook: str | None = None) -> bytes:
    document: dict[str, Any] = {"images": [base64.b64encode(_bytes(image)).decode() for image in images]}
    return json.dumps(document | ({} if webhook is None else {"webhook": webhook})).encode()


def _query(fpr: float | None, faces: str, model: str | None) -> str:
    values: Mapping[str, Any] = {"fpr": fpr, "faces": faces, "model": model}
    return "?" + urllib.parse.urlencode({name: value for name, value in values.items() if value is not None})


def _problem(status: int, headers: Message, content: bytes) -> ServiceProblem:
    try:
        body = dict(json.loads(content))
    except ValueError:  # of a proxy in between
        body = {"reason": "http", "detail": content[:200].decode(errors="replace")}
    after = headers.get("retry-after", "")
    reason, detail, name = (str(body.get(key, "")) for key in ("reason", "detail", "request_id"))
    return ServiceProblem(status, reason, detail, name, float(after) if after.isdigit() else None)
