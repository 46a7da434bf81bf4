"""Joining a Ray cluster, or starting a local one, on the loopback interface only, for as long as a job runs."""

import logging
import math
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil
import ray

from blades_dist import ray_private
from blades_dist.config import RayConfig
from blades_dist.settings import ConfigError

LOOPBACK = "127.0.0.1"
PORTS = range(20_000, 32_000)  # above those of Ray's workers
START_SECONDS = 180.0  # a busy machine, or a cold disk, takes a while
JOB_STOP_SECONDS = 120
# With it the node's address is 127.0.0.1, and every server of the cluster binds to loopback. Ray sets it on desktops
# only; `ray start` reads the variable.
LOOPBACK_ENVIRONMENT = {ray_private.CLUSTER_OF_SEVERAL_NODES: "0"}


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
        ray_private.start_on_loopback()
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


def require(key: str, needed: Mapping[str, float], what: str, remedy: str, unit: str = "{}") -> None:
    """Whether the connected cluster holds ``needed`` (Ray's resources by name, all of its nodes together). Ray itself
    would wait for ever for what will not come, and say nothing.

    Raises:
        ConfigError: it does not; the message names ``key``, ``what`` asks for it, what there is, and the ``remedy``.
    """
    there = ray.cluster_resources()
    for kind, amount in needed.items():
        if amount > there.get(kind, 0) + 1e-9:
            wanted = f"{amount:g} {unit.format(kind)}"
            raise ConfigError(f"{key}: {what} {wanted}, the cluster has {there.get(kind, 0):g}; {remedy}")


def cards(count: int, share: float) -> int:
    """GPUs that ``count`` actors of ``share`` each take: an actor lies on one card, so 3 of 0.6 take 3 of them."""
    return math.ceil(count / math.floor(1 / share + 1e-9)) if share else 0


@contextmanager
def head(num_cpus: int | None = None) -> Iterator[dict[str, str]]:
    """A local cluster with a job server, in processes of its own, on loopback; stopped at the end of the block.

    ``num_cpus`` logical CPUs; None: all.

    Yields the environment in which ``ray job submit`` and every job of this project find it. Other clusters of this
    machine are left alone (``ray stop`` would end them too), and leave this one alone: it keeps its files, by which Ray
    finds the cluster of a submitted job, in a folder of its own. They are removed, unless the block raises: then
    standard error says where Ray's logs are.

    Raises:
        RuntimeError: Ray did not start; the message ends with what it printed.
    """
    gcs, dashboard, agent, client = _free_ports(4)
    scripts = Path(sys.executable).parent
    # Jobs authenticate with a token of this user's; made once, kept in Ray's own place.
    environment = os.environ | LOOPBACK_ENVIRONMENT | {"RAY_AUTH_MODE": "token"}
    # Less of Ray's own chatter (it warns of each folder that it leaves out; .rayignore names them for us).
    environment |= {ray_private.LOGGER_LEVEL: "warning", ray_private.PACKAGE_EXCLUDES: ""}
    # `ray job stop` kills what has not ended by then; a run saves a checkpoint first. Ray's own default is 3 s.
    environment.setdefault(ray_private.JOB_STOP_SECONDS, str(JOB_STOP_SECONDS))
    environment["PATH"] = f"{scripts}{os.pathsep}{environment.get('PATH', '')}"
    subprocess.run([scripts / "ray", "get-auth-token", "--generate"], check=True, capture_output=True, env=environment)
    options = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-host={LOOPBACK}"]
    # The agent starts the submitted jobs; its usual port is the same for every cluster of a machine.
    options += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir=ray_private.temporary_folder()))  # short, as sockets need
    options += ["--disable-usage-stats", "--include-log-monitor=true", f"--temp-dir={folder}"]
    if num_cpus is not None:
        options.append(f"--num-cpus={num_cpus}")
    done = False
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [scripts / "ray", "start", "--head", "--block", *options], stdout=log, stderr=log, env=environment
        )
        try:
            _wait_for(process, (dashboard, agent), log)
            yield environment | {
                "RAY_ADDRESS": f"{LOOPBACK}:{gcs}",
                "RAY_API_SERVER_ADDRESS": f"http://{LOOPBACK}:{dashboard}",
            }
            done = True
        finally:
            _stop(process)
            if done:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                print(f"Ray's logs: {folder / 'session_latest' / 'logs'}", file=sys.stderr)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ends ``ray start --block`` and everything below it, jobs included."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=60)
    # Its children end themselves; what has not after a while is ended.
    for straggler in psutil.wait_procs(family, timeout=30)[1]:
        with suppress(psutil.NoSuchProcess):
            straggler.kill()
    process.kill()
    process.wait()


def _wait_for(
    process: "subprocess.Popen[bytes]", ports: Iterable[int], log: IO[str], seconds: float = START_SECONDS
) -> None:
    waiting, end = set(ports), time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        waiting = {port for port in waiting if not _answers(port)}
        if not waiting:
            return
        time.sleep(0.2)
    log.seek(0)
    raise RuntimeError(f"Ray did not start within {seconds:.0f} seconds; it printed:\n{log.read()[-2000:]}")


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that the system gives to connections: those could be taken by the time
    Ray listens."""
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((LOOPBACK, port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"fewer than {count} of the ports {PORTS.start} to {PORTS.stop - 1} are free")
