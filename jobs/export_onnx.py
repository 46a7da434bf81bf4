"""A detector as one ONNX file, checked against torch: python jobs/export_onnx.py DETECTOR OUTPUT.onnx"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    options = _options()
    from blades_dist.detect.detector import load_detector
    from blades_dist.detect.onnx import export_detector

    try:
        found = export_detector(load_detector(options.detector), options.output)
    except (ImportError, OSError, ValueError) as error:
        print(f"export_onnx: {error}", file=sys.stderr)
        return 2
    print(
        f"export_onnx: {options.output} ({options.output.stat().st_size / 2**20:.1f} MiB); largest differences from "
        f"torch on {found.n} random pictures: score {found.score:.1e} (relative), features {found.features:.1e}, "
        f"logits {found.logits:.1e}"
    )
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Writes encoder and head of a detector as one ONNX graph.")
    parser.add_argument("detector", type=Path, help="bundle folder written by jobs/fit_detector.py")
    parser.add_argument("output", type=Path, metavar="OUTPUT.onnx")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
