"""Names and words of EXIF as tools write them to JSON; the table behind ``metadata``. No Ray here."""

import re

from blades_dist.data import exif_tables as table


def letters(text: str) -> str:
    """Lower-case letters and digits alone: "F-Number", "FNumber" and "f number" are one name."""
    return "".join(c for c in text.lower() if c.isalnum())


# Groups of exiftool (families 0 and 1) and Flickr's tag spaces that are the camera's EXIF, with their ranks. Those of
# makers' notes say other things under the same names, IFD1 is the thumbnail.
GROUPS = {
    "exif": 0,
    "exififd": 0,
    "ifd0": 0,
    "subifd": 0,
    "tiff": 0,
    "": 10,
    "xmp": 20,
    "xmp-exif": 20,
    "xmp-exifex": 20,
    "xmp-tiff": 20,
    "composite": 30,
}

# Name to (field, rank among the names of a field). Rank 1 and up are derived or wider than the field itself.
FIELDS: dict[str, tuple[int, int]] = {
    "make": (table.MAKE, 0),
    "manufacturer": (table.MAKE, 1),
    "model": (table.MODEL, 0),
    "cameramodelname": (table.MODEL, 1),
    "exposuretime": (table.EXPOSURE_TIME, 0),
    "exposure": (table.EXPOSURE_TIME, 1),
    "shutterspeedvalue": (table.EXPOSURE_TIME, 2),
    "shutterspeed": (table.EXPOSURE_TIME, 3),
    "fnumber": (table.F_NUMBER, 0),
    "aperture": (table.F_NUMBER, 1),
    "aperturevalue": (table.F_NUMBER, 2),
    "iso": (table.ISO, 0),
    "isospeedratings": (table.ISO, 0),
    "photographicsensitivity": (table.ISO, 0),
    "isospeed": (table.ISO_SPEED, 0),
    "recommendedexposureindex": (table.ISO_RECOMMENDED, 0),
    "standardoutputsensitivity": (table.ISO_OUTPUT, 0),
    "focallength": (table.FOCAL_LENGTH, 0),
    "meteringmode": (table.METERING, 0),
    "flash": (table.FLASH, 0),
    "exposuremode": (table.EXPOSURE_MODE, 0),
    "whitebalance": (table.WHITE_BALANCE, 0),
    "whitebalancemode": (table.WHITE_BALANCE, 1),
    "exposureprogram": (table.EXPOSURE_PROGRAM, 0),
}

# Words to EXIF codes, in ``letters``; the words of the vocabularies themselves are known besides.
WORDS: dict[str, dict[str, int]] = {
    "metering_mode": {
        "unknown": 0,
        "average": 1,
        "centerweighted": 2,
        "centreweighted": 2,
        "centerweightedaverage": 2,
        "centreweightedaverage": 2,
        "spot": 3,
        "multispot": 4,
        "multisegment": 5,
        "multizone": 5,
        "pattern": 5,
        "matrix": 5,
        "partial": 6,
        "other": 255,
    },
    "exposure_mode": {
        "auto": 0,
        "autoexposure": 0,
        "manual": 1,
        "manualexposure": 1,
        "autobracket": 2,
        "autobracketing": 2,
    },
    "white_balance": {
        "auto": 0,
        "autowhitebalance": 0,
        "manual": 1,
        "manualwhitebalance": 1,
    },
    "exposure_program": {
        "notdefined": 0,
        "manual": 1,
        "manualcontrol": 1,
        "program": 2,
        "programae": 2,
        "normalprogram": 2,
        "aperturepriority": 3,
        "aperturepriorityae": 3,
        "shutterpriority": 4,
        "shutterpriorityae": 4,
        "shutterspeedpriority": 4,
        "shutterspeedpriorityae": 4,
        "creativeslowspeed": 5,
        "actionhighspeed": 6,
        "portrait": 7,
        "portraitmode": 7,
        "landscape": 8,
        "landscapemode": 8,
    },
}

# A number or fraction, after "f/" or "F", before a known unit or what a note in brackets adds.
NUMBER_FORM = re.compile(
    r"\s*(?:[fF]\s*/?\s*)?(?P<above>-?\d{1,15}(?:\.\d{0,15})?|-?\.\d{1,15})(?:\s*/\s*(?P<below>\d{1,15}(?:\.\d{0,15})?))?"
    r"\s*(?:(?:s|sec|secs|second|seconds|mm|iso)\b\.?)?\s*(?:[(,;].*)?$",
    re.ASCII | re.DOTALL | re.IGNORECASE,
)
