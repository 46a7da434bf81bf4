"""A detector as one ONNX file, checked against torch: python jobs/export_onnx.py DETECTOR OUTPUT.onnx"""

import sys

from blades_dist.config import ExportConfig
from blades_dist.settings import parse


def main() -> int:
    config = parse(ExportConfig, "export", description=__doc__, positional=("detector", "output"))
    # torch loads after --help and configuration errors.
    from blades_dist.detect.detector import load_detector
    from blades_dist.detect.onnx import export_detector

    try:
        found = export_detector(load_detector(config.detector), config.output)
    except (ImportError, OSError, ValueError) as error:
        print(f"export_onnx: {error}", file=sys.stderr)
        return 2
    print(
        f"export_onnx: {config.output} ({config.output.stat().st_size / 2**20:.1f} MiB); largest differences from "
        f"torch on {found.n} random pictures: score {found.score:.1e} (relative), features {found.features:.1e}, "
        f"logits {found.logits:.1e}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
