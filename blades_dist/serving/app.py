"""The HTTP interface as a Ray Serve deployment, started on loopback and stopped without a trace."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from blades_dist.config import ServeConfig
from blades_dist.detect.bundle import load_detector
from blades_dist.detect.detector import FaceResult
from blades_dist.serving.api import make_api

APPLICATION = "blades"


@serve.ingress()
class DetectService:
    """One replica: it holds the detector, and judges faces of concurrent requests together."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = ServeConfig.model_validate(config)
        self.detector = load_detector(self._config.detector)
        self._judge.set_max_batch_size(self._config.max_batch_size)
        self._judge.set_batch_wait_timeout_s(self._config.batch_wait_seconds)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_api(self, self._config.max_bytes, self._config.max_pixels)

    async def score(self, crops: np.ndarray, fpr: float) -> list[FaceResult]:
        """Answers for (n, 3, S, S) crops of one request."""
        return list(await asyncio.gather(*(self._judge(crop, fpr) for crop in crops)))

    @serve.batch
    async def _judge(self, crops: list[np.ndarray], fprs: list[float]) -> list[FaceResult]:
        return await asyncio.to_thread(self.detector.detect, np.stack(crops), fprs)


def build(config: ServeConfig) -> serve.Application:
    """The application of a configuration."""
    values = config.model_dump(mode="json")
    # Replicas may run elsewhere than where the job was started.
    values["detector"] = str(config.detector.resolve())
    concurrent = 2 * config.max_batch_size  # one batch being judged, one forming; a bound below one would cap it
    return serve.deployment(
        name="detector",
        num_replicas=config.replicas,
        max_ongoing_requests=concurrent,
        max_queued_requests=4 * concurrent,
        ray_actor_options={"num_cpus": 1},
        graceful_shutdown_timeout_s=10,
        max_constructor_retry_count=1,
    )(DetectService).bind(values)


@contextmanager
def running(config: ServeConfig) -> Iterator[str]:
    """The service for the enclosed block, on the Ray cluster this process is connected to; yields its URL.

    Raises:
        FileNotFoundError, ValueError: the detector cannot be loaded, or Ray runs without authentication; nothing was
            started.
        OSError: the port is taken.
    """
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        # A replica's port for calls from other replicas is bound to every interface and takes pickled arguments.
        raise ValueError("RAY_AUTH_MODE=disabled: a Serve replica would take orders from the network; unset it")
    load_detector(config.detector)  # said here in one line, rather than by a replica's trace
    _check_port(config.host, config.port)
    http, quiet = HTTPOptions(host=config.host, port=config.port), LoggingConfig(log_level="WARNING")
    serve.start(proxy_location="HeadOnly", http_options=http, logging_config=quiet)
    try:
        serve.run(build(config), name=APPLICATION, route_prefix="/", logging_config=quiet)
        host = f"[{config.host}]" if ":" in config.host else config.host
        yield f"http://{host}:{config.port}"
    finally:
        with contextlib.suppress(Exception):  # the cluster may be gone already
            serve.delete(APPLICATION)
            if not serve.status().applications:  # other applications of a shared cluster keep running
                serve.shutdown()


def wait_for_signal() -> None:
    """Returns at Ctrl-C or SIGTERM. Call it in the main thread."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(1.0):
        pass


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(f"port: {host}:{port} cannot be used ({error.strerror}); choose another with port=") from None
