"""Detectors behind HTTP on this machine: python jobs/serve.py --config FILE detector=FOLDER port=8000"""

import logging
import os
import sys

from blades_dist.config import ServeConfig
from blades_dist.settings import parse


def main() -> int:
    config = parse(ServeConfig, "serve")
    from blades_dist.raylocal import cluster
    from blades_dist.serving.app import metrics_url, running, update, wait_for_signal
    from blades_dist.serving.environment import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)

    def take_up() -> None:
        try:
            update(config)
            print("serve: the bundles that lie there now answer", flush=True)
        except (FileNotFoundError, ValueError, OSError) as error:
            print(f"serve: nothing was replaced: {error}", file=sys.stderr, flush=True)

    try:
        with cluster(config.ray), running(config) as url:
            token = " -H 'Authorization: Bearer TOKEN'" if config.authenticated else ""
            print(f"serve: {', '.join(config.bundles)} at {url} (documentation: {url}/openapi.json)")
            print(f"serve: try  curl{token} -F file=@photo.jpg {url}/v1/detect")
            print(f"serve: metrics for Prometheus at {metrics_url()}")
            print("serve: SIGHUP takes replaced bundles up, Ctrl-C stops it", flush=True)
            wait_for_signal(take_up)
            print("serve: stopping", flush=True)
    except (FileNotFoundError, ValueError, OSError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before it was ready
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
