"""Bearer tokens: kept as sha-256, compared in constant time."""

import hashlib
import hmac
import os
import re
from pathlib import Path

from blades_dist.serving.config import TOKENS_VARIABLE, ServiceConfig

_HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})")
_SHORTEST = 16


class Tokens:
    """The tokens that open the service; false when there is none."""

    def __init__(self, entries: list[str]) -> None:
        self._digests = [_digest_of(entry) for entry in entries]

    @property
    def hashed(self) -> list[str]:
        """All of them as sha256:HEX."""
        return [f"sha256:{digest.hex()}" for digest in self._digests]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def allow(self, authorization: str) -> bool:
        """Whether an ``Authorization`` header carries one of them."""
        scheme, _, token = authorization.partition(" ")
        given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        # Every digest is compared, so that time tells nothing about which one it was.
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(found)


def read_tokens(config: ServiceConfig) -> Tokens:
    """The tokens of the configuration, of the environment, and of ``tokens_file``: one a line, where empty lines and
    lines that begin with # count for nothing.

    Raises:
        ValueError: the file cannot be read or holds no token, or a token is too short to be a secret.
    """
    entries = list(config.tokens) + [entry.strip() for entry in os.environ.get(TOKENS_VARIABLE, "").split(",")]
    if config.tokens_file is not None:
        entries += _lines(config.tokens_file)
    return Tokens([entry for entry in entries if entry])


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"tokens_file: {file} cannot be read ({error})") from None
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise ValueError(f"tokens_file: {file} holds no token; write one a line, plain or as sha256:HEX")
    return found


def _digest_of(entry: str) -> bytes:
    if hashed := _HASHED.fullmatch(entry):
        return bytes.fromhex(hashed[1])
    if entry.startswith("sha256:"):
        raise ValueError("tokens: sha256: must be followed by 64 hexadecimal digits")
    if len(entry) < _SHORTEST:
        raise ValueError(f"tokens: a token of {len(entry)} characters can be guessed; take at least {_SHORTEST}")
    return hashlib.sha256(entry.encode()).digest()
