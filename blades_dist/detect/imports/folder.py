"""What an import gives, and the folder it is kept in: ``encoder/``, ``head.safetensors``, ``import.json``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from blades_dist.detect.heads import head_from_tensors
from blades_dist.detect.heads.base import Head
from blades_dist.models.export import FrozenEncoder, encoder_digest, load_encoder, save_encoder

ENCODER, HEAD, INDEX = "encoder", "head.safetensors", "import.json"


@dataclass(frozen=True)
class Imported:
    """An encoder from elsewhere; ``head`` is None where the file has none and one is fitted here (OC, CLIP).

    ``kind`` is the format it was read as, one of those of ``config.ImportConfig``.
    """

    encoder: FrozenEncoder
    head: Head | None
    kind: str

    @property
    def head_kind(self) -> str | None:
        """The head's kind as bundles name it."""
        return None if self.head is None else self.head.kind


class ImportInfo(BaseModel):
    """``import.json``: what the folder holds; ``encoder_digest`` says that encoder and head belong together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    kind: str
    head: str | None
    encoder_digest: str


def save_import(imported: Imported, folder: Path) -> None:
    """Writes the folder; an older import there is replaced.

    Raises:
        ValueError: ``folder`` holds something else; nothing is touched then.
    """
    if folder.exists() and not ((folder / INDEX).is_file() or (folder.is_dir() and not any(folder.iterdir()))):
        raise ValueError(f"output: {folder} exists and is no import; choose another or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)  # written last: a folder with it is whole
    save_encoder(imported.encoder, folder / ENCODER)
    if imported.head is None:
        (folder / HEAD).unlink(missing_ok=True)
    else:
        arrays = {name: np.ascontiguousarray(value) for name, value in imported.head.tensors().items()}
        save_file(arrays, folder / HEAD)
    info = ImportInfo(kind=imported.kind, head=imported.head_kind, encoder_digest=encoder_digest(imported.encoder))
    (folder / INDEX).write_text(json.dumps(info.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")


def load_import(folder: Path) -> Imported:
    """What ``save_import`` wrote.

    Raises:
        FileNotFoundError: the folder or a file of it is missing.
        ValueError: a file is damaged, or the parts do not belong together.
    """
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"{folder} is no import: {INDEX} is missing; jobs/import_checkpoint.py writes one")
    try:
        info = ImportInfo.model_validate_json((folder / INDEX).read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / INDEX} is damaged: {error}") from None
    encoder = load_encoder(folder / ENCODER)
    if encoder_digest(encoder) != info.encoder_digest:
        raise ValueError(f"{folder}: the encoder was changed after the import; import the checkpoint again")
    head = None
    if info.head:
        if not (folder / HEAD).is_file():
            raise FileNotFoundError(f"{folder} is incomplete: {HEAD} is missing")
        try:
            arrays = load_file(folder / HEAD)
            head = head_from_tensors(info.head, arrays)
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{folder / HEAD} is damaged: {error}") from None
        if head.dimensions != encoder.info.embed_dim:
            raise ValueError(f"{folder}: the head takes {head.dimensions} features, not {encoder.info.embed_dim}")
    return Imported(encoder, head, info.kind)
