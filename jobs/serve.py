"""A detector behind HTTP on this machine: python jobs/serve.py --config FILE detector=FOLDER port=8000"""

import logging
import sys

from blades_dist.config import ServeConfig
from blades_dist.settings import parse


def main() -> int:
    config = parse(ServeConfig, "serve")
    from blades_dist.raylocal import cluster
    from blades_dist.serving.app import running, wait_for_signal

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        with cluster(config.ray), running(config) as url:
            print(f"serve: {config.detector} answers on {url} (documentation: {url}/docs)")
            print(f"serve: try  curl -F file=@photo.jpg {url}/v1/detect")
            print("serve: Ctrl-C stops it", flush=True)
            wait_for_signal()
            print("serve: stopping", flush=True)
    except (FileNotFoundError, ValueError, OSError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before it was ready
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
