"""Pretrain the joint encoder.

python jobs/pretrain.py --config jobs/configs/demo.yaml train.lr=1e-4    a new run; the same name resumes it
python jobs/pretrain.py --resume runs/pretrain                           the same by its folder alone
python jobs/pretrain.py --from runs/pretrain --epochs +5                 a new run that starts where that one is
"""

import sys

from blades_dist.settings import ConfigError
from blades_dist.training.cli import read_arguments


def main() -> int:
    config = read_arguments(description=__doc__)
    # Imported late: `--print-config` and a wrong key answer at once, without Ray and DeepSpeed.
    from blades_dist.raylocal import cluster
    from blades_dist.training.launch import RunInterruptedError, RunStoppedError, check, finished, pretrain

    try:
        config = check(config)
        if not finished(config):
            with cluster(config.ray):
                pretrain(config)
    except ConfigError as error:
        print(f"pretrain: {error}", file=sys.stderr)
        return 2
    except RunStoppedError as error:
        print(f"pretrain: stopped at {error}", file=sys.stderr)
        return 1
    except RunInterruptedError as error:
        print(f"pretrain: {error}", file=sys.stderr)
        return 128 + error.number
    return 0


if __name__ == "__main__":
    sys.exit(main())
