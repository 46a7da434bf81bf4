"""A Ray cluster of several nodes in a process of its own: Ray reads how it authenticates when it is imported.

Told what to do by lines of JSON on standard input, answers each with one; ends, with every node, when the input does.
"""

import json
import os
import sys
from typing import Any

from ray.cluster_utils import Cluster

STORE_BYTES = 200_000_000


def main(port: int, dashboard_port: int) -> None:
    # Some of Ray's own actors look for "the" cluster of a machine, and this may not be the only one.
    os.environ["RAY_ADDRESS"] = f"127.0.0.1:{port}"
    board: dict[str, Any] = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": dashboard_port}
    # Any: the usual one, at which jobs are taken, belongs to the cluster that the tests share.
    board["dashboard_agent_listen_port"] = None
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "gcs_server_port": port, **board})
    nodes: dict[str, Any] = {}
    try:
        say(address=cluster.address, dashboard=cluster.webui_url, **describe(cluster.head_node))
        for line in sys.stdin:
            order = json.loads(line)
            if "add" in order:
                node = cluster.add_node(num_cpus=order["add"], object_store_memory=STORE_BYTES)
                nodes[node.node_id] = node
                say(**describe(node))
            else:
                cluster.remove_node(nodes.pop(order["kill"]), allow_graceful=False)
                say()
    finally:
        cluster.shutdown()


def describe(node: Any) -> dict[str, Any]:
    return {"node": node.node_id, "raylet": node.all_processes["raylet"][0].process.pid}


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
