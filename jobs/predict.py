"""A verdict for every face of an image or folder: python jobs/predict.py DETECTOR IMAGE_OR_FOLDER [key=value ...]

--json           one JSON document instead of lines
--fpr RATE       fpr=RATE: false-positive rate to judge at; default: the detector's own
--faces crop     faces=crop: each image is one face
"""

import json
import sys
from typing import Any

from blades_dist.config import PredictConfig
from blades_dist.settings import argument_parser, load, named, settle


def main() -> int:
    config, as_json = _arguments()
    # torch loads after --help and configuration errors.
    from blades_dist.data.sources.folder import image_files
    from blades_dist.detect.detector import load_detector
    from blades_dist.detect.inspect import HOW_TO_READ, inspect_files, lines, reference
    from blades_dist.detect.schema import ImageReport

    try:
        detector = load_detector(config.detector)
        fpr = detector.check_fpr(config.fpr)
        if not config.target.exists():
            raise FileNotFoundError(f"{config.target} does not exist")
        files = image_files(config.target) if config.target.is_dir() else [config.target]
    except (FileNotFoundError, ValueError) as error:
        print(f"predict: {error}", file=sys.stderr)
        return 2
    images: list[dict[str, Any]] = []
    unusable: list[dict[str, Any]] = []
    bounds = config.max_pixels, config.max_bytes
    for file, answer in inspect_files(detector, files, *bounds, fpr, whole=config.faces == "crop"):
        if isinstance(answer, ImageReport):
            images.append({"path": str(file), **answer.model_dump(mode="json")})
            text = "\n".join(lines(str(file), answer))
        else:
            unusable.append({"path": str(file), "reason": answer.reason, "detail": answer.detail})
            text = f"{file}: not judged: {answer.reason}: {answer.detail}"
        if not as_json:
            print(text, flush=True)
    if as_json:
        document = {"detector": reference(detector).model_dump(), "fpr": fpr, "images": images, "unusable": unusable}
        json.dump(document, sys.stdout, indent=1)
        print()
    elif images:
        print(HOW_TO_READ.format(fpr=fpr))
    return 1 if unusable else 0


def _arguments() -> tuple[PredictConfig, bool]:
    parser = argument_parser(PredictConfig, "predict", __doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--fpr", type=float)
    parser.add_argument("--faces", choices=("locate", "crop"))
    options = parser.parse_intermixed_args()
    given = [f"{key}={value}" for key in ("fpr", "faces") if (value := getattr(options, key)) is not None]
    overrides = [*named(options.overrides, "detector", "target"), *given]
    config = settle(parser, options, lambda: load(PredictConfig, options.section, options.config, overrides))
    return config, options.json


if __name__ == "__main__":
    sys.exit(main())
