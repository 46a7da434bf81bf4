"""Tables, plots and report of detectors: python jobs/evaluate.py --config FILE key=value ... [--equalise]

--equalise   brings both sides of the test set into one and the same container first (equalise=true)
"""

import sys

from blades_dist.config import EvaluateConfig
from blades_dist.settings import parse


def main() -> int:
    arguments = ["equalise=true" if item == "--equalise" else item for item in sys.argv[1:]]
    config = parse(EvaluateConfig, "evaluate", arguments, __doc__)
    # torch and Ray load after --help and configuration errors.
    from blades_dist.evaluate.inputs import EvaluationError, open_inputs
    from blades_dist.evaluate.run import evaluate
    from blades_dist.raylocal import cluster

    def say(text: str) -> None:
        print(f"evaluate: {text}", file=sys.stderr, flush=True)

    try:
        inputs = open_inputs(config)  # errors come before a cluster is started
        with cluster(config.ray):
            evaluate(config, say, inputs)
    except (EvaluationError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
