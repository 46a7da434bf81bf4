"""A node that is about to go says so: ``python drain.py --seconds 90``, the preStop hook of the trainers' pods.

Ray takes no new work to the node and tells Ray Train, whose workers save a checkpoint (docs/fault_tolerance.md). Then
waits until the node's raylet has ended, or the time is over. A node that cannot be drained is not held up.
"""

import argparse
import os
import subprocess
import sys
import time

import psutil

from blades_dist.ray_private import nodes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=90, help="until the node is ended; default: %(default)s")
    parser.add_argument("--address", default=os.environ.get("RAY_ADDRESS"), help="of the head; default: RAY_ADDRESS")
    parser.add_argument("--node-ip", default=os.environ.get("POD_IP"), help="as Ray knows this node; default: POD_IP")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    node = _own_node(options.address, options.node_ip)
    if node is None:
        print(f"drain: no node {options.node_ip} in the cluster at {options.address}", file=sys.stderr)
        return 1
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the node is about to be ended"]
    limit = ["--deadline-remaining-seconds", str(options.seconds)]
    told = subprocess.run(["ray", "drain-node", "--address", options.address, "--node-id", node, *reason, *limit])
    while told.returncode == 0 and time.monotonic() < end and _alive(options.address, node):
        time.sleep(1)
    return told.returncode


def _nodes(address: str) -> dict[str, tuple[str, bool]]:
    """Node id to address and whether it lives."""
    return {node: (at, alive) for node, at, alive in nodes(address)}


def _own_node(address: str, node_ip: str) -> str | None:
    alive = [key for key, (at, lives) in _nodes(address).items() if lives and at == node_ip]
    return alive[0] if len(alive) == 1 else None


def _alive(address: str, node: str) -> bool:
    raylets = any("raylet" in (process.info["name"] or "") for process in psutil.process_iter(["name"]))
    return raylets and _nodes(address)[node][1]


if __name__ == "__main__":
    sys.exit(main())
