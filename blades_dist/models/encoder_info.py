"""What ``encoder.json`` holds: everything about a frozen encoder but its numbers, and how older files are read."""

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from blades_dist.config import Resize

SCHEMA_VERSION: Final = 2
DESCRIPTION = "encoder.json"


class EncoderInfo(BaseModel):
    """How crops become features.

    ``resize``: how a crop comes to ``image_size`` (see ``models.resize``); ``tower``: our ResNet with its projection,
    or the pooled output of a Hugging Face model; ``backbone``: the configuration of its network as transformers
    writes it; ``normalise``: features are scaled to norm 1; ``classes`` names the logit columns of each task in order
    (empty: the encoder has no text features).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[2] = SCHEMA_VERSION
    image_size: int
    resize: Resize
    tower: Literal["resnet_projection", "huggingface"]
    backbone: dict[str, Any]
    embed_dim: int
    normalise: bool
    classes: dict[str, list[str]]
    provenance: dict[str, Any]

    def identity(self) -> dict[str, Any]:
        """The part that changes features: not where the encoder comes from, nor who wrote the file."""
        kept = self.model_dump(mode="json", exclude={"schema_version", "classes", "provenance"})
        kept["backbone"] = {key: value for key, value in self.backbone.items() if key not in _NOTES}
        return kept


# Keys of a transformers configuration that say who wrote it.
_NOTES = ("transformers_version", "_name_or_path", "architectures", "dtype")


def read_info(file: Path) -> EncoderInfo:
    """The description in a file of this or an older schema version.

    Raises:
        ValueError: damaged, of a version that this code does not know, or not an encoder description.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is not an encoder description: it holds a {type(content).__name__}")
    try:
        return EncoderInfo.model_validate(migrate(content))
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ValueError(f"{file} is not an encoder description: {where}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def migrate(content: dict[str, Any]) -> dict[str, Any]:
    """A description of any known schema version as one of the present version; the argument is left as it is.

    Version 1 knew our own encoders only, so what version 2 asks for has one value.

    Raises:
        ValueError: an unknown version.
    """
    version = content.get("schema_version")
    if version == SCHEMA_VERSION:
        return content
    if version == 1:
        added = {"schema_version": 2, "resize": "area", "tower": "resnet_projection", "normalise": True}
        return {**content, **added}
    raise ValueError(f"encoder schema version {version!r}; this code reads versions 1 to {SCHEMA_VERSION}")
