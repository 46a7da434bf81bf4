"""What Serve reads from the environment that Ray was started in. No Ray here."""

import os

from blades_dist import ray_private

# ``jobs/serve.py`` sets it for the cluster that it starts; docs/serving.md says what to do for one that runs already.
# The service works without: slower, and with longer gaps when a part of it dies.
_DIRECT = (ray_private.REPLICA_GRPC, ray_private.REPLICA_GRPC_MAX_BYTES)
ENVIRONMENT = {
    # A request whose front died is sent again, and the proxy's refusals are problem documents.
    ray_private.PROXY_MIDDLEWARE: "blades_dist.serving.proxy:middlewares",
    ray_private.PROXY_HEALTH_CHECK_SECONDS: "1",  # how soon a proxy that died is seen to have
    # Replicas call each other without the object store in between, and without a change of threads on either side:
    # nothing of ours blocks a loop. The bound is on a message that one of them takes.
    ray_private.REPLICA_GRPC: "1",
    ray_private.REPLICA_GRPC_MAX_BYTES: str(2**31 - 1),
    ray_private.USER_CODE_THREAD: "0",
    ray_private.ROUTER_LOOP: "0",
    ray_private.WORKER_NICENESS: "0",  # Ray gives way to all else on a machine; whoever asks the service waits for it
    ray_private.CONTROL_LOOP_SECONDS: "0.5",  # ten times a second take some hundredths of a core
}


def direct() -> bool:
    """Whether replicas of this process's cluster can call each other directly, with messages of any size."""
    return all(os.environ.get(name) == ENVIRONMENT[name] for name in _DIRECT)
