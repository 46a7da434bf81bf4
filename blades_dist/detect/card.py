"""The model card of a bundle: what a person should know before trusting it, with the numbers it was measured at."""

from blades_dist.detect.calibrate import Rate
from blades_dist.detect.heads import HEADS
from blades_dist.detect.info import DetectorInfo, OperatingPoint


def model_card(info: DetectorInfo) -> str:
    """Markdown text of a detector's README.md."""
    training, calibration, shape = info.training, info.calibration, info.preprocessing
    return "\n".join(
        [
            *_HUB_HEADER,
            "# Detector of AI-generated faces (BLADES-dist)",
            "",
            f"{HEADS[info.kind].sentence} Code version {info.provenance.code_version}.",
            "",
            "## Operating points",
            "",
            f"Thresholds come from {calibration.n} real faces of split `{calibration.split}`; the measured rate is on "
            f"split `{info.measured_split}`, which neither head nor threshold saw. A score below the threshold is "
            "flagged. "
            f"The smallest false-positive rate that {calibration.n} faces can support is "
            f"{calibration.smallest_fpr:.4g}.",
            "",
            "| nominal FPR | threshold | measured FPR | flagged / n | 95% interval (Wilson) |",
            "|---|---|---|---|---|",
            *[_row(point, point.fpr == info.fpr) for point in info.operating_points],
            "",
            "(*) the default. No number here says how often an AI face is caught: `jobs/evaluate.py` measures that.",
            "",
            *_undecided(info),
            "## Trained on",
            "",
            *_training(info),
            *[f"- {name.replace('_', ' ')}: {value:.6g}" for name, value in training.figures.items()],
            f"- data manifest `{info.provenance.manifest_digest[:16]}`, encoder "
            f"`{info.provenance.encoder_digest[:16]}`.",
            "",
            "## Input",
            "",
            f"A square crop of {shape.crop_scale:g} times the side of the face box, brought to {shape.image_size} x "
            f"{shape.image_size} pixels ({shape.resize}). Faces under {shape.min_face_px} pixels a side are not "
            f"judged. They are located by {shape.locator} unless a sidecar file gives them.",
            "",
            "## Limits",
            "",
            "- The rates hold for faces like those it was calibrated on: other cameras, editing, messengers' "
            "recompression or screenshots move them. Calibrate again on your own photographs.",
            "- The guarantee is over all real faces, not for any group of them; check the groups that matter to you.",
            "- Several faces of one photo are not independent, so intervals are a little too narrow for such sets.",
            "- `photographic` means: not unusual at this operating point. It is no proof of a photograph.",
            "- It looks at faces only, and does not see edits outside the crop.",
            "",
        ]
    )


# What the Hugging Face Hub reads of a model; nothing else does.
_HUB_HEADER = (
    "---",
    "library_name: blades-dist",
    "pipeline_tag: image-classification",
    "tags: [deepfake-detection, image-forensics]",
    "---",
    "",
)


def _undecided(info: DetectorInfo) -> list[str]:
    """When there is no verdict, and how often that was so."""
    lines = []
    if info.unsure_fpr is not None and info.unsure_fpr > info.fpr:
        lines.append(f"- p-values between {info.fpr:g} and {info.unsure_fpr:g} are called `unsure`.")
    if info.preprocessing.re_encodings:
        views = ", ".join(info.preprocessing.re_encodings)
        lines.append(
            f"- So are faces on which these re-encodings would be judged otherwise: {views}. Each is compared with the "
            "calibration faces re-encoded alike."
        )
    if not lines:
        return ["Every face gets a verdict; none is called `unsure`.", ""]
    if info.unsure_rate is not None and info.flagged_rate is not None:
        split = info.measured_split
        lines.append(f"- Of the photographs of split `{split}`, `unsure`: {_rate(info.unsure_rate)}.")
        lines.append(f"- Of the same, called AI-generated with all this: {_rate(info.flagged_rate)}.")
    return ["### No verdict", "", *lines, ""]


def _training(info: DetectorInfo) -> list[str]:
    training = info.training
    if not training.split:
        return ["- Elsewhere: the head was imported. Here it was calibrated and measured."]
    return [
        f"- {training.real} real faces of split `{training.split}`: {_counts(training.sources)}.",
        f"- AI faces: {_counts(training.generated) if training.generated else 'none'}.",
        *[f"- Note: {note}." for note in training.notes],
    ]


def _rate(rate: Rate) -> str:
    return f"{rate.rate:.4f} ({rate.count} / {rate.n}, 95% interval {rate.low:.4f} to {rate.high:.4f})"


def _row(point: OperatingPoint, default: bool) -> str:
    name = f"{point.fpr:.4g}{' (*)' if default else ''}"
    if point.threshold is None:
        return f"| {name} | too few calibration faces | - | - | - |"
    if point.measured is None:
        return f"| {name} | {point.threshold:.6g} | not measured | - | - |"
    rate = point.measured
    interval = f"{rate.low:.4f} to {rate.high:.4f}"
    return f"| {name} | {point.threshold:.6g} | {rate.rate:.4f} | {rate.count} / {rate.n} | {interval} |"


def _counts(counts: dict[str, int]) -> str:
    shown = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    text = ", ".join(f"{name} ({n})" for name, n in shown[:12])
    return text if len(shown) <= 12 else f"{text} and {len(shown) - 12} more"
