"""WebDataset: photographs in tar files, read in place by offset, never unpacked. No Ray here."""

import itertools
import json
import re
from collections.abc import Iterator
from contextlib import closing
from posixpath import splitext

from blades_dist.data.decode import Rejected
from blades_dist.data.faces import SIDECAR_SUFFIX, parse_sidecar
from blades_dist.data.metadata import exif_of_json
from blades_dist.data.sources.base import Annotations, Entry, Source, SourceError
from blades_dist.data.sources.disk_map import DiskMap
from blades_dist.data.sources.folder import LISTED_SUFFIXES, read_bounded, unsupported
from blades_dist.data.sources.storage import Listing, Stored, joined, open_storage, reason
from blades_dist.data.sources.tar_walk import Member, tar_members

_COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_MOST_TARS = 1_000_000
_MISSING = "the pattern names it, but there is no such file"


class WebDatasetSource(Source):
    """Image members of tar files: a folder of them, one, or a pattern such as ``train-{000..127}.tar``.

    Members that follow each other and share a key (the path up to the first dot of its last part) belong together.
    Of an image's group are read ``<stem>.faces.json``, and ``<name>.json``, ``<stem>.json`` or ``<key>.json``, which
    may hold metadata, faces (``{"faces": [...]}``), or both. ``note`` holds the tar and the members' offsets.
    """

    def __init__(self, uri: str) -> None:
        """``uri`` names a folder, or ends in ``.tar``; braces in its part after the last folder without any expand."""
        self.uri = uri
        plain, question, query = uri.partition("?") if "://" in uri else (uri, "", "")
        self._pattern = plain.rpartition("/")[2] if plain.endswith(".tar") else ""
        folder = plain
        if self._pattern:
            fixed = plain.partition("{")[0].rpartition("/")
            folder, self._pattern = fixed[0] + fixed[1] or ".", plain[len(fixed[0] + fixed[1]) :]
        self.storage = open_storage(folder + question + query)

    def entries(self) -> Iterator[Entry]:
        found = False
        for tar in self._tars():
            found = found or tar.problem != _MISSING
            yield from self._of_tar(tar)
        if not found:
            raise SourceError(f"source: no tar file for {self.uri}; name a folder of .tar files, one, or a pattern")

    def data(self, entry: Entry) -> bytes:
        note = json.loads(entry.note)
        data = self.storage.read(note["tar"], *note["image"])
        if len(data) < note["image"][1]:
            raise OSError(f"{note['tar']} ends within this member; it changed while it was being ingested")
        return data

    def annotations(self, entry: Entry, data: bytes) -> Annotations:
        note = json.loads(entry.note)
        faces = exif = None
        for at in note["json"]:
            text = read_bounded(self.storage, note["tar"], *at)
            if _holds_faces(text):
                faces = parse_sidecar(text) if faces is None else faces
            exif = exif or exif_of_json(text)
        return Annotations(faces=faces, exif=exif)

    def _tars(self) -> Iterator[Stored]:
        if not self._pattern:
            yield from self.storage.walk((".tar", *_COMPRESSED))
            return
        listings: dict[str, Listing] = {}
        for path in braces(self._pattern):
            folder, _, name = path.rpartition("/")
            if folder not in listings:
                try:
                    listings = {folder: self.storage.listing(folder) if folder else self.storage.top()}
                except OSError:
                    listings = {folder: Listing(folder)}
            if name in listings[folder].files:
                yield self.storage.describe(listings[folder], name)
            else:
                yield Stored(path, 0, "", _MISSING)

    def _of_tar(self, tar: Stored) -> Iterator[Entry]:
        first, slash, _ = tar.path.partition("/")
        source = first if slash else self.storage.name
        if tar.problem is not None or tar.path.lower().endswith(_COMPRESSED):
            problem = ("unreadable", tar.problem) if tar.problem else ("unsupported", "compressed; unpack it to a .tar")
            yield Entry(tar.path, source, tar.size, tar.mark, problem=problem)
            return
        group: list[Member] = []
        with closing(DiskMap()) as names:
            try:
                with self.storage.open(tar.path) as file:
                    for member in tar_members(file, tar.size):
                        if group and _key(member.name) != _key(group[0].name):
                            yield from _of_group(group, tar, source, names)
                            group = []
                        group.append(member)
                yield from _of_group(group, tar, source, names)
            except (Rejected, OSError) as error:
                yield from _of_group(group, tar, source, names)
                told = (error.reason, error.detail) if isinstance(error, Rejected) else ("unreadable", reason(error))
                yield Entry(tar.path, source, tar.size, tar.mark, problem=(told[0], f"{tar.path}: {told[1]}"))


def braces(pattern: str) -> Iterator[str]:
    """Every name of a pattern with ranges ``{000..127}`` (as many digits as written) and choices ``{a,b}``.

    Raises:
        SourceError: a brace that is neither, or more than a million names.
    """
    parts = re.split(r"(\{[^{}]*\})", pattern)
    options: list[list[str]] = []
    total = 1
    for part in parts:
        numbers, choice = _RANGE.fullmatch(part), _CHOICE.fullmatch(part)
        if numbers:
            low, high = int(numbers[1]), int(numbers[2])
            if not low <= high < low + _MOST_TARS:
                raise SourceError(f"source: {part} in {pattern} is no range of up to {_MOST_TARS} numbers")
            options.append([str(number).zfill(len(numbers[1])) for number in range(low, high + 1)])
        elif choice:
            options.append(choice[1].split(","))
        elif "{" in part or "}" in part:
            raise SourceError(f"source: {part} in {pattern} is neither a range {{000..127}} nor a choice {{a,b}}")
        else:
            options.append([part])
        total *= len(options[-1])
    if total > _MOST_TARS:
        raise SourceError(f"source: {pattern} stands for {total} names; at most {_MOST_TARS} are possible")
    yield from map("".join, itertools.product(*options))


def _of_group(group: list[Member], tar: Stored, source: str, names: DiskMap) -> Iterator[Entry]:
    texts = {member.name: member for member in group if member.name.lower().endswith(".json") and member.plain}
    for member in group:
        stem, suffix = splitext(member.name)
        if suffix.lower() not in LISTED_SUFFIXES:
            continue
        path = joined(tar.path, member.name)
        if not names.add(member.name, ""):
            path = f"{path} (at byte {member.offset})"  # a tar may hold a name twice
        if not member.plain:
            yield Entry(path, source, 0, tar.mark, problem=("unreadable", "a link or sparse file within the tar"))
            continue
        beside = [stem + SIDECAR_SUFFIX, member.name + ".json", stem + ".json", _key(member.name) + ".json"]
        spans = [[texts[name].offset, texts[name].size] for name in dict.fromkeys(beside) if name in texts]
        note = json.dumps({"tar": tar.path, "image": [member.offset, member.size], "json": spans})
        problem = unsupported(member.name) if member.size else None
        yield Entry(path, source, member.size, tar.mark, note, problem=problem)


def _key(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _holds_faces(text: bytes) -> bool:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Rejected("bad_sidecar", f"json of the tar: {error or 'too deep'}"[:200]) from None
    return isinstance(content, dict) and "faces" in content
