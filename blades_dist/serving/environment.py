"""Environment variables for the processes of Ray Serve; they must be set before Ray starts. No Ray here."""

import os

from blades_dist import ray_private

# ``jobs/serve.py`` sets it for the cluster that it starts; docs/serving.md says what to do for one that runs already.
# The service works without: slower, and with longer gaps when a part of it dies.
_DIRECT = (ray_private.REPLICA_GRPC, ray_private.REPLICA_GRPC_MAX_BYTES)
ENVIRONMENT = {
    # Retries requests whose front replica died; the proxy's own errors become problem documents.
    ray_private.PROXY_MIDDLEWARE: "blades_dist.serving.proxy:middlewares",
    ray_private.PROXY_HEALTH_CHECK_SECONDS: "1",  # a proxy that died is replaced after this time
    # Replicas call each other by gRPC instead of through the object store, and without a hand-over between threads on
    # either side: none of our code blocks an event loop.
    ray_private.REPLICA_GRPC: "1",
    ray_private.REPLICA_GRPC_MAX_BYTES: str(2**31 - 1),
    ray_private.USER_CODE_THREAD: "0",
    ray_private.ROUTER_LOOP: "0",
    ray_private.WORKER_NICENESS: "0",  # not nice: clients wait for it
    ray_private.CONTROL_LOOP_SECONDS: "0.5",  # Serve's 0.1 s costs some hundredths of a core
}


def direct() -> bool:
    """Whether replicas of this process's cluster can call each other directly, with messages of any size."""
    return all(os.environ.get(name) == ENVIRONMENT[name] for name in _DIRECT)
