"""A verdict for every face of an image or folder: python jobs/predict.py DETECTOR IMAGE_OR_FOLDER [--json]"""

import argparse
import json
import sys
from pathlib import Path

from blades_dist.config import IngestConfig


def main() -> int:
    options = _options()
    from blades_dist.data.sources.folder import image_files
    from blades_dist.detect.detector import load_detector
    from blades_dist.detect.inspect import HOW_TO_READ, inspect_files, lines, reference
    from blades_dist.detect.schema import ImageReport

    try:
        detector = load_detector(options.detector)
        fpr = detector.check_fpr(options.fpr)
        target: Path = options.target
        if not target.exists():
            raise FileNotFoundError(f"{target} does not exist")
        files = image_files(target) if target.is_dir() else [target]
    except (FileNotFoundError, ValueError) as error:
        print(f"predict: {error}", file=sys.stderr)
        return 2
    images, unusable = [], []
    pixels, size = (IngestConfig.model_fields[name].default for name in ("max_pixels", "max_bytes"))
    for file, answer in inspect_files(detector, files, pixels, size, fpr, whole=options.faces == "crop"):
        if isinstance(answer, ImageReport):
            images.append({"path": str(file), **answer.model_dump(mode="json")})
            if not options.json:
                print("\n".join(lines(str(file), answer)), flush=True)
        else:
            unusable.append({"path": str(file), "reason": answer.reason, "detail": answer.detail})
            if not options.json:
                print(f"{file}: not judged: {answer.reason}: {answer.detail}", flush=True)
    if options.json:
        document = {"detector": reference(detector).model_dump(), "fpr": fpr, "images": images, "unusable": unusable}
        json.dump(document, sys.stdout, indent=1)
        print()
    elif images:
        print(HOW_TO_READ.format(fpr=fpr))
    return 1 if unusable else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Says for every face whether it looks like a photograph.")
    parser.add_argument("detector", type=Path, help="bundle folder written by jobs/fit_detector.py")
    parser.add_argument("target", type=Path, metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    parser.add_argument("--fpr", type=float, help="false-positive rate to judge at; default: the detector's own")
    parser.add_argument("--faces", choices=("locate", "crop"), default="locate", help="crop: each image is one face")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
