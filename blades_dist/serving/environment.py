"""What Serve reads from the environment that Ray was started in. No Ray here."""

import os

# ``jobs/serve.py`` sets it for the cluster that it starts; docs/serving.md says what to do for one that runs already.
# The service works without: slower, and with longer gaps when a part of it dies.
_DIRECT = ("RAY_SERVE_USE_GRPC_BY_DEFAULT", "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH")
ENVIRONMENT = {
    # A request whose front died is sent again, and the proxy's refusals are problem documents.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "blades_dist.serving.proxy:middlewares",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # how soon a proxy that died is seen to have
    # Replicas call each other without the object store in between, and without a change of threads on either side:
    # nothing of ours blocks a loop. The bound is on a message that one of them takes.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_worker_niceness": "0",  # Ray gives way to all else on a machine; whoever asks the service waits for it
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # ten times a second take some hundredths of a core
}


def direct() -> bool:
    """Whether replicas of this process's cluster can call each other directly, with messages of any size."""
    return all(os.environ.get(name) == ENVIRONMENT[name] for name in _DIRECT)
