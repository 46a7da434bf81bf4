"""Search for an encoder and a detector: python jobs/sweep.py --config FILE key=value ...; the same name resumes."""

import sys

from blades_dist.settings import parse
from blades_dist.tuning.config import SweepConfig


def main() -> int:
    config = parse(SweepConfig, "sweep", description=__doc__)
    # torch, Ray and Optuna's studies load after --help and configuration errors.
    from blades_dist.raylocal import cluster
    from blades_dist.tuning.sweep import SweepError, check, sweep

    def say(text: str) -> None:
        print(f"sweep: {text}", flush=True)

    try:
        config = check(config)
        with cluster(config.ray):
            sweep(config, say)
    except (SweepError, OSError, ValueError) as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
