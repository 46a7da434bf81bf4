"""Detectors under compression, resizing, noise ...: python jobs/robustness.py --config FILE key=value ..."""

import sys

from blades_dist.config import RobustnessConfig
from blades_dist.settings import parse


def main() -> int:
    config = parse(RobustnessConfig, "robustness", description=__doc__)
    # torch and Ray load after --help and configuration errors.
    from blades_dist.evaluate.inputs import EvaluationError
    from blades_dist.evaluate.robustness import open_work, robustness
    from blades_dist.raylocal import cluster

    def say(text: str) -> None:
        print(f"robustness: {text}", file=sys.stderr, flush=True)

    try:
        work = open_work(config)  # errors come before a cluster is started
        with cluster(config.ray):
            robustness(config, say, work)
    except (EvaluationError, OSError) as error:
        print(f"robustness: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
