"""Content credentials (C2PA) of an image file, where the optional ``c2pa-python`` is installed. No Ray here.

What a signed manifest says is told beside the verdict, never mixed into it: a valid one names who vouches for the
file's history, most files have none, and removing it takes one re-encoding.
"""

import io
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

# IPTC digital source types of pictures that no camera took, as C2PA actions use them.
GENERATED_TYPES = ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "algorithmicMedia")
_MIME = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp", "tiff": "image/tiff", "heif": "image/heif"}
_NO_NETWORK = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}


class Credentials(BaseModel):
    """The active manifest of a file.

    ``state``: what the library made of signatures and hashes (``Valid`` holds also for signers nobody vouches for;
    ``Trusted`` needs a trust list). ``source_types``: IPTC digital source types of its actions. ``generated``: one of
    them says that an algorithm made the picture. ``error``: there is a manifest that cannot be read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: Literal["Valid", "Trusted", "Invalid", "unknown"]
    generator: str | None = None
    issuer: str | None = None
    source_types: tuple[str, ...] = ()
    generated: bool = False
    error: str | None = None


def available() -> bool:
    """Whether credentials can be read here."""
    try:
        import c2pa  # noqa: F401
    except ImportError:
        return False
    return True


def read_credentials(data: bytes, codec: str) -> Credentials | None:
    """The credentials in a file's bytes; None if it has none, or nothing here can read them. Nothing is fetched."""
    if not available() or codec not in _MIME:
        return None
    from c2pa import C2paError, Context, Reader, Settings

    try:
        context = Context(settings=Settings.from_dict(_NO_NETWORK))
        reader = Reader.try_create(_MIME[codec], io.BytesIO(data), context=context)
        if reader is None:
            return None
        with reader:
            return _summary(json.loads(reader.json()), reader.get_validation_state())
    except C2paError.ManifestNotFound:
        return None
    except (C2paError.Manifest, C2paError.Signature, C2paError.Verify, C2paError.Assertion) as error:
        return Credentials(state="Invalid", error=str(error)[:200])
    except (C2paError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return Credentials(state="unknown", error=f"{type(error).__name__}: {error}"[:200])


def _summary(store: Any, state: str | None) -> Credentials:
    manifest = store["manifests"][store["active_manifest"]]
    infos = manifest.get("claim_generator_info") or []
    generator = infos[0].get("name") if infos else manifest.get("claim_generator")
    kinds = []
    for assertion in manifest.get("assertions", []):
        if str(assertion.get("label", "")).startswith("c2pa.actions"):
            actions = assertion.get("data", {}).get("actions", [])
            kinds += [str(action["digitalSourceType"]) for action in actions if "digitalSourceType" in action]
    names = tuple(dict.fromkeys(kind.rstrip("/").rpartition("/")[2] for kind in kinds))
    return Credentials(
        state=state if state in ("Valid", "Trusted", "Invalid") else "unknown",
        generator=None if generator is None else str(generator)[:200],
        issuer=(manifest.get("signature_info") or {}).get("issuer"),
        source_types=names,
        generated=any(name in GENERATED_TYPES for name in names),
    )
