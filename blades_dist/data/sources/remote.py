"""Storage behind URIs: Arrow's own file systems, and through fsspec any other that has a module for it."""

import io
from functools import lru_cache
from typing import BinaryIO, cast
from urllib.parse import urlsplit

import fsspec
import pyarrow.fs as arrow

from blades_dist.data.sources.base import SourceError
from blades_dist.data.sources.storage import Listing, Storage, Stored, joined, printable, reason

_OF_ARROW = ("s3", "gs", "gcs", "hdfs", "viewfs")
_READ_AHEAD = 2**16  # bytes; a request costs more than these do
_ADVICE = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile) on every node, and for other regions or "
    "servers append ?region=... or ?endpoint_override=... to the URI",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS on every node, or for public buckets write gs://anonymous@bucket/path",
    "hdfs": "every node needs Java and the Hadoop client: JAVA_HOME, HADOOP_HOME, CLASSPATH=$(hadoop classpath --glob)",
}
_ADVICE |= {"gcs": _ADVICE["gs"], "viewfs": _ADVICE["hdfs"]}


class RemoteStorage(Storage):
    """A folder or key prefix behind a URI. Connections are made on first use, once a process."""

    @property
    def name(self) -> str:
        parts = urlsplit(self.uri)
        return printable((parts.netloc + parts.path).rstrip("/").rpartition("/")[2])

    def listing(self, folder: str = "") -> Listing:
        files, root = _connection(self.uri)
        try:
            found = files.get_file_info(arrow.FileSelector(joined(root, folder) if folder else root))
        except UnicodeError:
            raise OSError("it holds a name that is not valid UTF-8") from None
        except Exception as error:  # modules behind fsspec raise what they like
            raise _as_os_error(error) from None
        # Some object stores list a key that ends in a slash, a folder's placeholder, as a nameless file.
        kept = {info.base_name: info for info in found if info.type != arrow.FileType.Directory and info.base_name}
        folders = tuple(info.base_name for info in found if info.type == arrow.FileType.Directory and info.base_name)
        return Listing(folder, kept, folders)

    def describe(self, listing: Listing, name: str) -> Stored:
        info = listing.files[name]
        problem = None if info.type == arrow.FileType.File else "not a regular file"
        mark = "" if info.mtime_ns is None else str(info.mtime_ns)
        return Stored(printable(joined(listing.folder, name)), info.size or 0, mark, problem, listing)

    def open(self, path: str) -> BinaryIO:
        files, root = _connection(self.uri)
        try:
            return cast(BinaryIO, io.BufferedReader(files.open_input_file(joined(root, path)), _READ_AHEAD))
        except Exception as error:
            raise _as_os_error(error) from None

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        files, root = _connection(self.uri)
        try:
            with files.open_input_file(joined(root, path)) as file:
                length = max(0, file.size() - offset) if size is None else size
                return bytes(file.read_at(length, offset))
        except Exception as error:
            raise _as_os_error(error) from None

    def exists(self, path: str) -> bool:
        files, root = _connection(self.uri)
        try:
            return bool(files.get_file_info(joined(root, path)).type != arrow.FileType.NotFound)
        except Exception as error:
            raise _as_os_error(error) from None


@lru_cache(maxsize=32)
def _connection(uri: str) -> tuple[arrow.FileSystem, str]:
    """The file system behind a URI and the path in it.

    Raises:
        SourceError: it cannot be reached from this machine, with what to do about it.
    """
    scheme = urlsplit(uri).scheme
    try:
        if scheme in _OF_ARROW:
            files, root = arrow.FileSystem.from_uri(uri)
        else:
            handled, root = fsspec.core.url_to_fs(uri)
            files = arrow.PyFileSystem(arrow.FSSpecHandler(handled))
    except ImportError as error:
        raise SourceError(f"source: {scheme}:// needs a module that is not installed here: {reason(error)}; install it "
                          "on every node") from None  # fmt: skip
    except ValueError as error:
        known = f"a path, file://, {'://, '.join(_OF_ARROW)}://, and every scheme that fsspec has a module for"
        raise SourceError(f"source: cannot open {uri}: {reason(error)}; possible are {known}") from None
    except Exception as error:
        advice = _ADVICE.get(scheme, f"see the documentation of fsspec's {scheme} module for credentials")
        raise SourceError(f"source: cannot open {uri}: {reason(error)}; {advice}") from None
    return files, root.rstrip("/") if root != "/" else root


def _as_os_error(error: Exception) -> Exception:
    return error if isinstance(error, (OSError, SourceError)) else OSError(reason(error))
