"""What ingest makes of photographs whose EXIF and faces someone else has listed.

python benchmarks/real_files.py FOLDER            FOLDER/index.jsonl: one object a file: file, width, height, faces_xywh
                                                  (boxes x, y, w, h in pixels) and exif (names and values as read)
python benchmarks/real_files.py FOLDER --write    also writes benchmarks/results/real_files.md: counts only

Printed are, for each tag, in how many files it is listed and in how many of those it is understood, and the share of
the listed faces that the default locator finds (intersection over union of 0.3 or more), and how many others it finds.
"""

import argparse
import json
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import PIL

from blades_dist.config import IngestConfig
from blades_dist.data.crops import Photo, process_photo
from blades_dist.data.exif import read_exif
from blades_dist.data.sources.base import Annotations

LISTED = {
    "iso": ("ISO", "ISOSpeedRatings"),
    "aperture": ("FNumber", "ApertureValue"),
    "exposure_time": ("ExposureTime", "ShutterSpeedValue"),
    "focal_length": ("FocalLength",),
    "make": ("Make",),
    "metering_mode": ("MeteringMode",),
    "exposure_mode": ("ExposureMode",),
    "white_balance": ("WhiteBalance",),
    "exposure_program": ("ExposureProgram",),
    "flash": ("Flash",),
}
OVERLAP = 0.3  # boxes of different detectors differ in what they take for a face's edge


def overlap(a: Any, b: Any) -> float:
    """Intersection over union of two boxes (x, y, w, h)."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(0.0, w) * max(0.0, h)
    return float(both / (a[2] * a[3] + b[2] * b[3] - both))


def measure(folder: Path, config: IngestConfig) -> tuple[Counter[str], Counter[str]]:
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for line in (folder / "index.jsonl").read_text().splitlines():
        about = json.loads(line)
        file = folder / about["file"]
        if not about.get("exif") or not file.is_file():
            continue
        data = file.read_bytes()
        raw = read_exif(data)
        for tag, names in LISTED.items():
            if any(str(about["exif"].get(name, "")).strip() for name in names):
                counts[f"{tag} listed"] += 1
                counts[f"{tag} understood"] += raw[tag] is not None
            else:
                counts[f"{tag} besides"] += raw[tag] is not None
        outcome = process_photo(Photo(about["file"], "real", about["sha256"], "train"), data, Annotations(), config)
        reasons.update(reason for _, reason, _ in outcome.rejected)
        counts["files"] += 1
        counts["rows"] += len(outcome.rows)
        found, faces = [face.box for face in outcome.found], about.get("faces_xywh") or []
        hit = [any(overlap(box, other) >= OVERLAP for other in found) for box in faces]
        counts["faces listed"] += len(faces)
        counts["faces found"] += sum(hit)
        large = [min(box[2:]) >= config.min_face_px for box in faces]
        counts["large faces listed"] += sum(large)
        counts["large faces found"] += sum(h for h, is_large in zip(hit, large, strict=True) if is_large)
        extra = [box for box in found if not any(overlap(box, other) >= OVERLAP for other in faces)]
        counts["found besides"] += len(extra)
        counts["large found besides"] += sum(min(box[2:]) >= config.min_face_px for box in extra)
    return counts, reasons


def table(folder: Path) -> str:
    config = IngestConfig.model_validate({"source": str(folder), "output": "."})
    counts, reasons = measure(folder, config)
    lines = [
        f"# Ingest of {counts['files']} real photographs with EXIF",
        "",
        f"Against an index made by other tools (boxes by another detector). Python {platform.python_version()}, "
        f"OpenCV {cv2.__version__}, Pillow {PIL.__version__}.",
        "",
        "| tag | files that list it | understood | share | understood where it is not listed |",
        "|---|---|---|---|---|",
    ]
    for tag in LISTED:
        listed, understood = counts[f"{tag} listed"], counts[f"{tag} understood"]
        share = f"{understood / listed:.1%}" if listed else "-"
        lines.append(f"| {tag} | {listed} | {understood} | {share} | {counts[f'{tag} besides']} |")
    lines += ["", "A code without a word in our vocabulary (exposure program 0, say) is absent on purpose.", ""]
    for name in ("", "large "):
        listed, found = counts[f"{name}faces listed"], counts[f"{name}faces found"]
        what = f"of {config.min_face_px} pixels or more" if name else "of any size"
        besides = counts[f"{name}found besides"]
        lines.append(
            f"- faces {what}: {found} of {listed} listed ones found ({found / max(1, listed):.1%}), {besides} besides"
        )
    told = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items())) or "none"
    lines += [f"- rows: {counts['rows']}", f"- quarantine: {told}"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    text = table(options.folder)
    print(text)
    if options.write:
        (Path(__file__).parent / "results" / "real_files.md").write_text(text)


if __name__ == "__main__":
    main()
