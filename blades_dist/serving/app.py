"""The service on Ray Serve: building its application from a configuration, starting, updating and stopping it."""

import contextlib
import hashlib
import json
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, BackpressureConfig, HTTPOptions
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

import blades_dist
from blades_dist.config.serve import ServiceConfig
from blades_dist.data.locate import make_locator
from blades_dist.data.locate_models import LocatorError
from blades_dist.detect.detector import INDEX, load_detector
from blades_dist.ray_private import route_in_own_loop, versioned
from blades_dist.raylocal import cards, require
from blades_dist.serving.backend import AT_ONCE
from blades_dist.serving.deployments import Decode, Front, Jobs
from blades_dist.serving.jobs import read_webhooks
from blades_dist.serving.middleware import read_tokens
from blades_dist.serving.model import Model

APPLICATION = "blades"
# Queue length of one decoder replica. Serve's router backs off for up to half a second when all queues are full; a
# queue must keep its decoder busy for that time.
DECODER_QUEUE = 16
SMALL_CPUS = 0.1  # logical CPUs of a front and of the jobs replica: they only wait for other replicas
_QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


def application(arguments: dict[str, Any]) -> serve.Application:
    """For ``serve deploy``: ``import_path: blades_dist.serving.app:application``, with ``ServiceConfig``'s keys as
    ``args``. Where the proxies bind is the deploy file's to say; without tokens every request must come from the
    machine itself, wherever they bind."""
    return build(ServiceConfig.model_validate(arguments))


def build(config: ServiceConfig) -> serve.Application:
    """The application of a configuration.

    Two configurations that differ in bundle folders alone give one code version, so that deploying the second over the
    first reconfigures replicas and restarts none.
    """
    values, version = _portable(config), _version(config)
    drain = {"graceful_shutdown_timeout_s": config.deadline_seconds, "graceful_shutdown_wait_loop_s": 0.2}
    # A replica that died is noticed within a second; one that does not answer has Serve's default time-out.
    common = drain | {"max_constructor_retry_count": 1, "logging_config": _QUIET, "health_check_period_s": 1}
    waiting = AT_ONCE * config.max_requests

    def deployment(target: type, name: str, cpus: float, ongoing: int, queued: int, **more: Any) -> serve.Deployment:
        options = {"num_cpus": cpus} | more.pop("actor", {})
        made = serve.deployment(
            name=name,
            ray_actor_options=options,
            max_ongoing_requests=ongoing,
            max_queued_requests=queued,
            backpressure_config=BackpressureConfig(retry_after_s=1),
            **common,
            **more,
        )(target)
        return versioned(made, version)

    def model(name: str, folder: Path, of: str, shadow: Any, background: bool) -> serve.Application:
        made = deployment(
            Model,
            name,
            config.model_cpus,
            2 * config.max_batch_size,  # one batch runs while the next one forms
            waiting,
            user_config={"folder": str(folder.resolve()), "id": _identity(folder)},
            actor={"num_gpus": config.gpu},
            **_replicas(config.replicas, config.max_replicas, config.max_batch_size),
        )
        return made.bind(values, of, shadow, background)

    shadows = {name: model(f"shadow-{name}", own, name, None, True) for name, own in config.shadow.items()}
    models = {name: model(f"model-{name}", own, name, shadows.get(name), False) for name, own in config.bundles.items()}
    decoders = _replicas(config.decoders, config.max_decoders, 1)
    decode = deployment(Decode, "decode", config.decoder_cpus, DECODER_QUEUE, waiting, **decoders).bind(values)
    jobs = deployment(Jobs, "jobs", SMALL_CPUS, 100, 100).bind(values, decode, models)
    # The front refuses with 503 as a problem document; Serve would do so in plain text, so its bound lies higher.
    front = deployment(Front, "front", SMALL_CPUS, waiting + 64, waiting + 64, num_replicas=config.fronts)
    return front.bind(values, decode, models, jobs)


@contextmanager
def running(config: ServiceConfig) -> Iterator[str]:
    """The service for the enclosed block, on the Ray cluster this process is connected to; yields its URL.

    Raises:
        FileNotFoundError, ValueError: a bundle cannot be loaded, the cluster is too small, Ray runs without
            authentication, or a replica did not start; nothing is left running.
        OSError: the port is taken.
    """
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        # A replica's port for calls from other replicas is bound to every interface and takes pickled arguments.
        raise ValueError("RAY_AUTH_MODE=disabled: a Serve replica would take orders from the network; unset it")
    check(config)
    _check_resources(config)
    _check_port(config.host, config.port)
    # A last resort: every route has its own deadline.
    longest = config.receive_seconds + config.deadline_seconds * math.ceil(config.max_files / AT_ONCE) + 10
    http = HTTPOptions(host=config.host, port=config.port, request_timeout_s=longest)
    serve.start(proxy_location="HeadOnly", http_options=http, logging_config=_QUIET)
    try:
        _run(config)
        host = f"[{config.host}]" if ":" in config.host else config.host
        yield f"http://{host}:{config.port}"
    finally:
        with contextlib.suppress(Exception):  # the cluster may be gone already, or the front never came up
            _drain(config.deadline_seconds)
        with contextlib.suppress(Exception):
            serve.delete(APPLICATION)
            if not serve.status().applications:  # other applications of a shared cluster keep running
                serve.shutdown()


def update(config: ServiceConfig, seconds: float = 120.0) -> None:
    """Loads the bundles that now lie in the configured folders into the running service, without downtime.

    Raises:
        FileNotFoundError, ValueError: one cannot be loaded; the service goes on as before.
        TimeoutError: a replica has not loaded its bundle; its log says why.
    """
    check(config)
    _run(config)
    end = time.monotonic() + seconds
    for name, folder in config.bundles.items():
        handle = _handle(f"model-{name}")
        while _answering(handle, seconds) != {_identity(folder)}:
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{name}: {folder} was not taken up within {seconds:g} s; the service's log says why"
                )
            time.sleep(0.1)


def metrics_url() -> str:
    """Where Prometheus reads what this node's replicas count; Ray chooses the port, unless it was given one."""
    node = next(item for item in ray.nodes() if item["Alive"])
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def check(config: ServiceConfig) -> None:
    """Validates what replicas would fail at, for an error message in one line.

    Raises:
        FileNotFoundError, ValueError: a bundle, its face locator, the tokens or the webhook secret cannot be used.
    """
    read_tokens(config)
    read_webhooks(config)
    for folder in (*config.bundles.values(), *config.shadow.values()):
        detector = load_detector(folder)
        try:
            make_locator(detector.info.preprocessing.locator, detector.locator_model)
        except LocatorError as error:
            raise ValueError(f"detector {folder}: {error}") from None
    for name, folder in config.shadow.items():
        own, other = (load_detector(item).info.preprocessing for item in (config.bundles[name], folder))
        for what in ("image_size", "resize", "crop_scale"):
            if getattr(own, what) != getattr(other, what):
                raise ValueError(f"shadow: {folder} has {what} {getattr(other, what)}, not {getattr(own, what)}")


def wait_for_signal(on_hangup: Callable[[], None] = lambda: None) -> None:
    """Returns at Ctrl-C or SIGTERM; SIGHUP calls ``on_hangup``. Call it in the main thread."""
    stop, hangup = threading.Event(), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    signal.signal(signal.SIGHUP, lambda *_: hangup.set())
    while not stop.wait(0.5):
        if hangup.is_set():
            hangup.clear()
            on_hangup()


def _handle(name: str) -> DeploymentHandle[Any]:
    """For this process, which runs no event loop."""
    return route_in_own_loop(serve.get_deployment_handle(name, APPLICATION))


def _answering(handle: DeploymentHandle[Any], seconds: float) -> set[str]:
    """Ids of the detectors that a model's replicas have loaded; empty while a replica is being replaced."""
    try:
        return {spec.info.detector.id for spec in handle.broadcast("describe").results(timeout_s=seconds)}
    except (RayServeException, RayActorError):
        return set()


def _drain(seconds: float) -> None:
    """Drains every front while the deployments behind it still run; Serve would stop all of them at once."""
    _handle("front").broadcast("drain", seconds).results(timeout_s=seconds + 5)


def _run(config: ServiceConfig, name: str = APPLICATION, route: str = "/") -> None:
    try:
        serve.run(build(config), name=name, route_prefix=route, logging_config=_QUIET)
    except RuntimeError as error:
        raise ValueError(f"the service did not start: {_reason(name, error)}") from None


def _reason(name: str, error: RuntimeError) -> str:
    """The error at the end of the traceback of a replica that failed to start."""
    found = serve.status().applications.get(name)
    messages = [item.message for item in found.deployments.values()] if found else []
    lines = [line.strip() for text in (*messages, str(error)) for line in text.splitlines() if "Error: " in line]
    return lines[-1] if lines else str(error).strip().splitlines()[-1]


def _replicas(least: int, most: int | None, target: int) -> dict[str, Any]:
    if most is None or most == least:
        return {"num_replicas": least}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=least, max_replicas=most, target_ongoing_requests=target, upscale_delay_s=5
        )
    }


def _portable(config: ServiceConfig) -> dict[str, Any]:
    """The configuration for replicas, which may run elsewhere: whole paths, and of tokens only what they hash to."""
    values = config.model_dump(mode="json", include=set(ServiceConfig.model_fields))
    values["tokens"], values["tokens_file"] = read_tokens(config).hashed, None
    if config.webhook_secret_file is not None:
        values["webhook_secret_file"] = str(config.webhook_secret_file.resolve())
    return values


def _version(config: ServiceConfig) -> str:
    values = _portable(config) | {name: sorted(getattr(config, name)) for name in ("others", "shadow")}
    del values["detector"]
    text = json.dumps([blades_dist.__version__, values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _identity(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return hashlib.sha256((folder / INDEX).read_bytes()).hexdigest()
    return ""  # loading it in the replica reports the error


def _check_resources(config: ServiceConfig) -> None:
    models = (len(config.bundles) + len(config.shadow)) * config.replicas
    cpus = config.decoders * config.decoder_cpus + models * config.model_cpus + (config.fronts + 1) * SMALL_CPUS
    remedy = "lower model_cpus, decoder_cpus or replicas, or raise ray.num_cpus"
    require("replicas", {"CPU": cpus}, "the service needs", remedy, "of Ray's logical {}s")
    remedy = "lower gpu (a share: 0.25 lets four replicas use one card) or replicas, or set gpu=false"
    require("gpu", {"GPU": cards(models, config.gpu)}, f"{models} replicas of {config.gpu:g} each need", remedy)


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(f"port: {host}:{port} cannot be used ({error.strerror}); choose another with port=") from None
