"""Tables, plots and report of detectors: python jobs/evaluate.py --config FILE key=value ..."""

import sys

from blades_dist.config import EvaluateConfig
from blades_dist.settings import parse


def main() -> int:
    config = parse(EvaluateConfig, "evaluate")
    from blades_dist.evaluate.run import EvaluationError, evaluate  # torch loads after --help and config errors

    try:
        evaluate(config)
    except (EvaluationError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
