"""A Ray cluster of several nodes on one machine, each node a family of processes that can be killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from blades_dist.raylocal import JOB_STOP_SECONDS, LOOPBACK, LOOPBACK_ENVIRONMENT

SCRIPTS = Path(sys.executable).parent


@dataclass(frozen=True)
class Node:
    """``id`` as Ray has it; ``raylet`` is the process that its workers descend from."""

    id: str
    raylet: int


class Hosts:
    """Nodes of ``cpus`` logical CPUs each beside a head that has none; ``environment`` is for jobs and the CLI."""

    def __init__(self, cpus: int) -> None:
        path = f"{SCRIPTS}{os.pathsep}{os.environ.get('PATH', '')}"
        environment = os.environ | LOOPBACK_ENVIRONMENT | {"RAY_AUTH_MODE": "token", "PATH": path}
        environment["RAY_DEDUP_LOGS"] = "0"  # every line counts here
        environment["RAY_JOB_STOP_WAIT_TIME_S"] = str(JOB_STOP_SECONDS)
        subprocess.run(
            [SCRIPTS / "ray", "get-auth-token", "--generate"], check=True, capture_output=True, env=environment
        )
        self.cpus, self.nodes = cpus, list[Node]()
        program = Path(__file__).with_name("cluster_process.py")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self._process = subprocess.Popen(
            [sys.executable, program, str(_free_port()), str(_free_port())], env=environment, **pipes
        )  # type: ignore[call-overload]
        begun = self._answer()
        self.head = Node(begun["node"], begun["raylet"])
        addresses = {"RAY_ADDRESS": begun["address"], "RAY_API_SERVER_ADDRESS": f"http://{begun['dashboard']}"}
        self.environment = environment | addresses

    def add(self) -> Node:
        """One more node, once the cluster knows it."""
        answer = self._order(add=self.cpus)
        self.nodes.append(Node(answer["node"], answer["raylet"]))
        return self.nodes[-1]

    def kill(self, node: Node) -> None:
        """The whole node at once, as a power cut."""
        self.nodes.remove(node)
        self._order(kill=node.id)

    def _order(self, **order: object) -> dict[str, Any]:
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        for line in self._process.stdout:
            with suppress(ValueError):  # Ray prints here too
                answer = json.loads(line)
                if isinstance(answer, dict):
                    return answer
        raise AssertionError("the cluster's process has ended")

    def processes(self, title: str) -> list[psutil.Process]:
        """Ray's processes of this cluster whose title begins with ``title``."""
        found = []
        for node in (self.head, *self.nodes):
            with suppress(psutil.NoSuchProcess):
                children = psutil.Process(node.raylet).children(recursive=True)
                found += [child for child in children if _title(child).startswith(title)]
        return found

    @contextmanager
    def frozen(self, title: str) -> Iterator[list[psutil.Process]]:
        """``processes(title)``, standing still within the block: what takes a while there comes before their end."""
        found = self.processes(title)
        for process in found:
            process.suspend()
        try:
            yield found
        finally:
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def node_of(self, process: psutil.Process) -> Node | None:
        """The killable node that runs a process; None for the head."""
        with suppress(psutil.NoSuchProcess):
            above = {parent.pid for parent in process.parents()}
            return next((node for node in self.nodes if node.raylet in above), None)
        return None

    def close(self) -> None:
        """Ends every node."""
        self._process.stdin.close()
        self._process.wait(120)


@contextmanager
def hosts(count: int, cpus: int = 1) -> Iterator[Hosts]:
    """``count`` nodes and a head without CPUs, where drivers and Ray Train's controller run."""
    cluster = Hosts(cpus)
    try:
        for _ in range(count):
            cluster.add()
        yield cluster
    finally:
        cluster.close()


class Job:
    """``jobs/pretrain.py`` as a driver on the head node; its output goes to ``log``, appended."""

    def __init__(
        self, cluster: Hosts, settings: dict[str, object], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        command = [sys.executable, str(Path(__file__).parents[2] / "jobs" / "pretrain.py")]
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*command, *(f"{key}={value}" for key, value in settings.items())],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=cluster.environment | dict(environment or {}),
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(60)

    def finish(self, seconds: float = 600) -> str:
        """What it has printed, once it has ended well."""
        status = self.process.wait(seconds)
        assert status == 0, self.output[-6000:]
        return self.output


def wait_until(condition: Callable[[], object], what: str, seconds: float = 240, every: float = 0.05) -> None:
    """Polls; raises AssertionError when it never becomes true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(every)


def _title(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
