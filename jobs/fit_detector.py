"""Frozen encoder and shards to a detector bundle: python jobs/fit_detector.py --config FILE key=value ..."""

import sys

from blades_dist.config import FitConfig
from blades_dist.settings import parse


def main() -> int:
    config = parse(FitConfig, "fit")
    # torch and Ray load after --help and configuration errors.
    from blades_dist.detect.fit import check_inputs, encoder_folder, fit_detector, summary
    from blades_dist.raylocal import cluster

    def say(text: str) -> None:
        print(f"fit: {text}", flush=True)

    try:
        check_inputs(config, encoder_folder(config))  # errors come before a cluster is started
        with cluster(config.ray):
            found = fit_detector(config, say)
    except (OSError, ValueError) as error:
        print(f"fit_detector: {error}", file=sys.stderr)
        return 2
    for name, info in found.items():
        for line in summary(config.output / name if config.leave_one_out else config.output, info):
            say(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
