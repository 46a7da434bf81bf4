"""Joining a Ray cluster, or starting a local one, on the loopback interface only, for as long as a job runs."""

import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil
import ray
from ray._private import ray_constants
from ray._private import utils as ray_utils

from blades_dist.config import RayConfig

LOOPBACK = "127.0.0.1"
JOB_STOP_SECONDS = 120
# Ray's own switch for "this node talks to nobody else": it takes 127.0.0.1 as the node's address, and with it every
# server of the cluster binds to loopback. Ray sets it on desktops only; `ray start` reads the variable.
LOOPBACK_ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@contextmanager
def cluster(config: RayConfig, object_store_bytes: int | None = None) -> Iterator[None]:
    """A connection to Ray for the enclosed block; ``object_store_bytes`` is for one that is started here.

    Joins the connection that this process already has, else the cluster of ``RAY_ADDRESS`` (set by
    ``ray job submit``); otherwise starts one on loopback and stops it at the end.
    """
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING)
    else:
        os.environ.update(LOOPBACK_ENVIRONMENT)
        # Read from the environment when ray was imported, which is before anyone knew that we start a cluster.
        ray_constants.ENABLE_RAY_CLUSTER = False
        ray.init(
            address="local",
            num_cpus=config.num_cpus,
            object_store_memory=object_store_bytes,
            include_dashboard=False,
            logging_level=logging.WARNING,
        )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def head(num_cpus: int | None = None) -> Iterator[dict[str, str]]:
    """A local cluster with a job server, in processes of its own, on loopback; stopped at the end of the block.

    ``num_cpus`` logical CPUs; None: all.

    Yields the environment in which ``ray job submit`` and every job of this project find it. Other clusters of this
    machine are left alone (``ray stop`` would end them too).

    Raises:
        RuntimeError: Ray did not start; the message ends with what it printed.
    """
    gcs, dashboard, client = _free_port(), _free_port(), _free_port()
    scripts = Path(sys.executable).parent
    # Jobs authenticate with a token of this user's; made once, kept in Ray's own place.
    environment = os.environ | LOOPBACK_ENVIRONMENT | {"RAY_AUTH_MODE": "token"}
    # Less of Ray's own chatter (it warns of each folder that it leaves out; .rayignore names them for us).
    environment |= {"RAY_LOGGER_LEVEL": "warning", "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES": ""}
    # `ray job stop` kills what has not ended by then; a run saves a checkpoint first. Ray's own default is 3 s.
    environment.setdefault("RAY_JOB_STOP_WAIT_TIME_S", str(JOB_STOP_SECONDS))
    environment["PATH"] = f"{scripts}{os.pathsep}{environment.get('PATH', '')}"
    subprocess.run([scripts / "ray", "get-auth-token", "--generate"], check=True, capture_output=True, env=environment)
    options = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-host={LOOPBACK}"]
    options += [f"--ray-client-server-port={client}", "--disable-usage-stats", "--include-log-monitor=true"]
    if num_cpus is not None:
        options.append(f"--num-cpus={num_cpus}")
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [scripts / "ray", "start", "--head", "--block", *options], stdout=log, stderr=log, env=environment
        )
        try:
            _wait_for(process, dashboard, log)
            yield environment | {
                "RAY_ADDRESS": f"{LOOPBACK}:{gcs}",
                "RAY_API_SERVER_ADDRESS": f"http://{LOOPBACK}:{dashboard}",
            }
        finally:
            _stop(process, f"{LOOPBACK}:{gcs}")


def _stop(process: "subprocess.Popen[bytes]", address: str) -> None:
    """Ends ``ray start --block`` and everything below it, jobs included."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    process.wait(timeout=60)
    # Its children end themselves; what has not after a while is ended.
    for straggler in psutil.wait_procs(family, timeout=30)[1]:
        with suppress(psutil.NoSuchProcess):
            straggler.kill()
    # A later cluster's tools would look for this one.
    if ray_utils.read_ray_address() == address:
        Path(ray_utils.get_ray_address_file(None)).unlink(missing_ok=True)


def _wait_for(process: "subprocess.Popen[bytes]", port: int, log: IO[str], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex((LOOPBACK, port)) == 0:
                return
        time.sleep(0.2)
    log.seek(0)
    raise RuntimeError(f"Ray did not start within {seconds:.0f} seconds; it printed:\n{log.read()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
