"""A stage store that nodes share: entries on any file system that `pyarrow.fs` knows, beside the local one and behind it.

    <where>/<key>/<first digits of the file's hash>/<name>
    <where>/<key>/manifest.json

Object stores have no rename, so the manifest comes last and makes an entry whole. Two nodes that bring the same entry up at
once cannot mix it: files of other content have other names.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import posixpath
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs

from orchestrator.trial.shelf import MANIFEST, Manifest, is_full

_REST_S = 60.0  # after a fault the store is left alone: each try may take as long as a network's timeout
_CHUNK_BYTES = 2**20
_CAN_RENAME = ("local", "hdfs")  # others show an object when it is whole

log = logging.getLogger(__name__)


class SharedShelf:
    """The entries of one shared store. Whatever goes wrong there is said in one log line, and the trial goes on without.

    Args:
        where: an absolute path, or a URI that `pyarrow.fs.FileSystem.from_uri` reads.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._opened: tuple[Any, str] | None = None
        self._rests_until = 0.0

    def fetch(self, key: str, folder: Path) -> bool:
        """Copy an entry into an empty local folder, its manifest included; returns whether there was a whole one.

        One that is torn or corrupted is deleted: it is absent, and nobody need look at it again.

        Raises:
            OSError: the local disk is full.
        """
        if self._rests():
            return False
        with self._forgiven(f"looking for {key}", but_full=True):
            system, _ = self._open()
            try:
                with system.open_input_stream(self._path(key, MANIFEST)) as stream:
                    content = stream.read()
            except FileNotFoundError:
                return False
            try:
                for name, (size, digest) in Manifest.read(content).files.items():
                    self._copy_down(self._path(key, digest[:16], name), folder / name, size, digest)
            except (ValueError, FileNotFoundError) as error:
                log.warning("stage %s in %s is not whole and was deleted: %s", key, self._where, error)
                system.delete_dir(self._path(key))
                return False
            (folder / MANIFEST).write_bytes(content)
            return True
        return False

    def offer(self, key: str, folder: Path) -> None:
        """Copy a local entry up, unless there is one already."""
        if self._rests():
            return
        with self._forgiven(f"bringing {key} up"):
            system, _ = self._open()
            if system.get_file_info(self._path(key, MANIFEST)).type == pa.fs.FileType.File:
                return
            content = (folder / MANIFEST).read_bytes()
            for name, (_, digest) in Manifest.read(content).files.items():
                with (folder / name).open("rb") as source, self._writing(self._path(key, digest[:16], name)) as sink:
                    while chunk := source.read(_CHUNK_BYTES):
                        sink.write(chunk)
            with self._writing(self._path(key, MANIFEST)) as sink:
                sink.write(content)

    def _copy_down(self, place: str, path: Path, size: int, digest: str) -> None:
        """Copy one file; ValueError when it is not what its manifest says."""
        path.parent.mkdir(parents=True, exist_ok=True)
        found, num_bytes = hashlib.sha256(), 0
        system, _ = self._open()
        with system.open_input_stream(place) as source, path.open("wb") as sink:
            while chunk := source.read(_CHUNK_BYTES):
                sink.write(chunk)
                found.update(chunk)
                num_bytes += len(chunk)
        if (num_bytes, found.hexdigest()) != (size, digest):
            raise ValueError(f"{path.name} must have {size} bytes of hash {digest}; it has {num_bytes} of {found.hexdigest()}")

    @contextlib.contextmanager
    def _writing(self, place: str) -> Iterator[BinaryIO]:
        """A file that is written, and shown when it is whole."""
        system, _ = self._open()
        if system.type_name not in _CAN_RENAME:
            with system.open_output_stream(place) as sink:
                yield sink
            return
        system.create_dir(posixpath.dirname(place), recursive=True)
        partial = f"{place}.{uuid.uuid4().hex}"
        try:
            with system.open_output_stream(partial) as sink:
                yield sink
            system.move(partial, place)
        except BaseException:
            with contextlib.suppress(OSError):
                system.delete_file(partial)
            raise

    def _path(self, *parts: str) -> str:
        return posixpath.join(self._open()[1], *parts)

    def _open(self) -> tuple[Any, str]:
        """The file system, and the path of the store in it."""
        if self._opened is None:
            self._opened = pa.fs.FileSystem.from_uri(self._where)
        return self._opened

    def _rests(self) -> bool:
        return time.monotonic() < self._rests_until

    @contextlib.contextmanager
    def _forgiven(self, what: str, *, but_full: bool = False) -> Iterator[None]:
        """Do without the store when it does not answer, and then for a minute."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            if but_full and is_full(error):
                raise
            self._rests_until = time.monotonic() + _REST_S
            log.warning(
                "the shared stage store %s is left alone for %.0f s, as %s failed: %s", self._where, _REST_S, what, error
            )
