"""What EXIF fields mean here: field numbers, plausible ranges, codes and maker names. ``docs/exif.md`` prints them."""

MAKE, MODEL, ORIENTATION, EXIF_DIRECTORY = 0x010F, 0x0110, 0x0112, 0x8769
EXPOSURE_TIME, F_NUMBER, EXPOSURE_PROGRAM = 0x829A, 0x829D, 0x8822
ISO, ISO_OUTPUT, ISO_RECOMMENDED, ISO_SPEED = 0x8827, 0x8831, 0x8832, 0x8833
SHUTTER_APEX, APERTURE_APEX, METERING, FLASH, FOCAL_LENGTH = 0x9201, 0x9202, 0x9207, 0x9209, 0x920A
EXPOSURE_MODE, WHITE_BALANCE, FOCAL_LENGTH_35MM = 0xA402, 0xA403, 0xA405

# Names as the EXIF standard (CIPA DC-008) has them; every field that is read, and no other one is.
FIELD_NAMES = {
    MAKE: "Make",
    MODEL: "Model",
    ORIENTATION: "Orientation",
    EXIF_DIRECTORY: "ExifIFD",
    EXPOSURE_TIME: "ExposureTime",
    F_NUMBER: "FNumber",
    EXPOSURE_PROGRAM: "ExposureProgram",
    ISO: "PhotographicSensitivity",
    ISO_OUTPUT: "StandardOutputSensitivity",
    ISO_RECOMMENDED: "RecommendedExposureIndex",
    ISO_SPEED: "ISOSpeed",
    SHUTTER_APEX: "ShutterSpeedValue",
    APERTURE_APEX: "ApertureValue",
    METERING: "MeteringMode",
    FLASH: "Flash",
    FOCAL_LENGTH: "FocalLength",
    EXPOSURE_MODE: "ExposureMode",
    WHITE_BALANCE: "WhiteBalance",
    FOCAL_LENGTH_35MM: "FocalLengthIn35mmFilm",
}
TEXT_FIELDS = frozenset({MAKE, MODEL})

# Fields that a tag is taken from, the first usable one first. The 35 mm equivalent is no focal length: it is shown by
# ``--inspect`` and never mixed with one.
SOURCES: dict[str, tuple[int, ...]] = {
    "iso": (ISO, ISO_SPEED, ISO_RECOMMENDED, ISO_OUTPUT),
    "aperture": (F_NUMBER, APERTURE_APEX),
    "exposure_time": (EXPOSURE_TIME, SHUTTER_APEX),
    "focal_length": (FOCAL_LENGTH,),
    "make": (MAKE,),
    "metering_mode": (METERING,),
    "exposure_mode": (EXPOSURE_MODE,),
    "white_balance": (WHITE_BALANCE,),
    "exposure_program": (EXPOSURE_PROGRAM,),
    "flash": (FLASH,),
}

# What a photographic camera can have; anything outside is a broken or joking writer and counts as absent.
PLAUSIBLE = {
    "iso": (1.0, 10_000_000.0),
    "aperture": (0.5, 128.0),
    "exposure_time": (1e-6, 86_400.0),
    "focal_length": (0.5, 5_000.0),
}
UNITS = {"iso": "ISO speed", "aperture": "f-number", "exposure_time": "seconds", "focal_length": "millimetres"}
ISO_OVERFLOW = 65535  # the end of the two-byte field: the camera gives the speed in one of the later, wider ones
MAX_APEX = 40.0  # 2 to the 40 is beyond every plausible range

# EXIF 2.3, table 9 and following; codes that are not listed are absent, but for metering modes ("others").
METERING_MODES = {
    1: "average",
    2: "centerweighted",
    3: "spot",
    4: "multi-spot",
    5: "multi-segment",
    6: "partial",
}
EXPOSURE_MODES = {0: "auto", 1: "manual", 2: "auto-bracketing"}
WHITE_BALANCES = {0: "auto", 1: "manual"}
EXPOSURE_PROGRAMS = {
    1: "manual control",
    2: "normal program",
    3: "aperture priority",
    4: "shutter priority",
    7: "portrait mode",
    8: "landscape mode",
}
CODES = {
    "metering_mode": METERING_MODES,
    "exposure_mode": EXPOSURE_MODES,
    "white_balance": WHITE_BALANCES,
    "exposure_program": EXPOSURE_PROGRAMS,
}
OTHER_METERING = "others"  # every metering code that is not listed, 0 (unknown) and 255 (other) among them

OTHER_MAKE = "others"
# Maker names by rule: the first entry whose words open the maker's name wins, anything else is "others". Phones sold
# as Nokia carry HMD Global since 2017; Pentax was Asahi Optical until 2002. Sony Ericsson was a maker of its own.
MAKE_ALIASES: tuple[tuple[str, str], ...] = (
    ("nikon", "Nikon"),
    ("apple", "Apple"),
    ("fujifilm", "FUJIFILM"),
    ("fuji photo film", "FUJIFILM"),
    ("canon", "Canon"),
    ("samsung", "Samsung"),
    ("sony ericsson", OTHER_MAKE),
    ("sonyericsson", OTHER_MAKE),
    ("sony", "Sony"),
    ("panasonic", "Panasonic"),
    ("matsushita", "Panasonic"),
    ("nokia", "Nokia"),
    ("hmd global", "Nokia"),
    ("pentax", "Pentax"),
    ("asahi", "Pentax"),
)
# Makers that wrote one Make into several brands' cameras: (Make opens with, Model opens with, maker).
MAKE_BY_MODEL: tuple[tuple[str, str, str], ...] = (("ricoh", "pentax", "Pentax"),)
