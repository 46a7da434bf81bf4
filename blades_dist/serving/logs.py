"""Structured logging: one JSON object per line, nothing of which is of a picture."""

import json
import logging
import sys
import time
from dataclasses import asdict
from typing import Any

from blades_dist.serving.middleware import RequestRecord

_NAME = "blades_dist.serving"
_QUIET = {"/healthz", "/v2/health/live", "/v2/health/ready"}  # probes, many a minute
_log = logging.getLogger(_NAME)


class JsonLines(logging.Formatter):
    """A record as JSON; what ``event`` was given as fields stays fields."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line: dict[str, Any] = {"time": moment, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up() -> None:
    """Sends the service's records to stderr, as lines of JSON; once a process."""
    if not _log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        _log.addHandler(handler)
        _log.setLevel(logging.INFO)
        _log.propagate = False


def event(name: str, level: int = logging.INFO, **fields: Any) -> None:
    """A line of that name with these fields."""
    _log.log(level, name, extra={"fields": fields})


def log_request(record: RequestRecord) -> None:
    """The line of one request; probes that went well get none."""
    if record.status < 400 and record.route in _QUIET:
        return
    level = logging.ERROR if record.status >= 500 and record.status != 503 else logging.INFO
    event("request", level, **asdict(record))
