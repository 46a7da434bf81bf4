"""Answers in plain lines, for people at a terminal."""

from blades_dist.detect.inspect import FaceReport, ImageReport

HOW_TO_READ = (
    "How to read this: p is the share of real photographs that look as unusual as this face; at or below {fpr:g} a\n"
    "face is called AI-generated, so about {fpr:.2%} of photographs like the calibration ones are called so wrongly.\n"
    "'photographic' means not unusual, which is no proof; 'unsure' means that the evidence is thin or not stable.\n"
    "What the pixels suggest, EXIF and content credentials are no part of the verdict. The measured rates are in the\n"
    "detector folder's README.md."
)
_VERDICTS = {"photographic": "photographic", "ai_generated": "AI-generated", "unsure": "unsure"}


def lines(name: str, image: ImageReport) -> list[str]:
    """One image: a line a face, with what speaks beside the verdict indented under it."""
    found = []
    for face in image.faces:
        x, y, w, h = face.box
        where = f"{name} face {face.face} at {x:.0f},{y:.0f} {w:.0f}x{h:.0f}"
        found.append(f"{where}: {_VERDICTS[face.verdict]}, p = {face.p_value:.4g}")
        found += [f"    {line}" for line in _beside(face)]
    if image.faces_too_small:
        found.append(f"{name}: {image.faces_too_small} more face(s) too small to judge")
    if image.credentials is not None:
        signer = f" signed by {image.credentials.issuer}" if image.credentials.issuer else ""
        said = ": they say that an algorithm made the picture" if image.credentials.generated else ""
        found.append(f"{name}: content credentials{signer}, state {image.credentials.state}{said}")
    return found


def _beside(face: FaceReport) -> list[str]:
    found = list(face.unsure_because)
    regions = face.read_outs.get("face_fine", {})
    if regions:
        region, value = max(regions.items(), key=lambda item: item[1])
        found.append(f"region that looks most manipulated: {region} ({value:.2f})")
    tags = {task: max(own, key=lambda name: own[name]) for task, own in face.read_outs.items() if "face_" not in task}
    if tags:
        suggested = ", ".join(f"{task} {best} ({face.read_outs[task][best]:.2f})" for task, best in tags.items())
        found.append(f"the pixels suggest: {suggested}")
    exif = face.exif_consistency
    if exif is not None:
        claims = ", ".join(f"{tag} {claim.claimed} ({claim.probability:.2f})" for tag, claim in exif.tags.items())
        together = "too few photographs to compare with" if exif.p_value is None else f"together p = {exif.p_value:.4g}"
        found.append(f"the file's EXIF claims: {claims}; {together}")
    return found
