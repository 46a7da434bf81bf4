"""The whole path on one machine, from images to a report: what ``make demo`` runs."""

import argparse
import sys
from pathlib import Path

import yaml

from blades_dist.demo import Demo, DemoError
from blades_dist.settings import ConfigError


def main() -> int:
    options = _options()
    demo = Demo(
        options.runs, options.config, options.data, options.fakes, options.equal_weights, tuple(options.overrides)
    )
    try:
        if options.print_config:
            yaml.safe_dump(demo.resolved(), sys.stdout, sort_keys=False)
        else:
            demo.run()
    except (ConfigError, DemoError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/demo"), help="everything is written below this folder")
    parser.add_argument("--config", type=Path, default=Path("jobs/configs/demo.yaml"))
    parser.add_argument("--data", type=Path, help="folder of your photographs; default: simulated ones")
    parser.add_argument("--fakes", type=Path, help="folder with one folder per generator, beside --data")
    parser.add_argument("--equal-weights", action="store_true", help="also pretrain with every weight fixed at 1")
    parser.add_argument("--print-config", action="store_true", help="print the configuration of all stages and exit")
    parser.add_argument("overrides", nargs="*", metavar="stage.key=value", help="e.g. pretrain.train.epochs=2")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    sys.exit(main())
