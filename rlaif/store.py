"""Tables: append-only JSONL files keyed by content id. The table is the journal; there is no second cache.

A line is written with one `write`, so whatever kills the process, the file holds whole lines and at most one torn one
at its end. On open the torn line is cut off (and counted) and the rest is indexed: 16 bytes of id and an offset a line,
never the records themselves. Records are read back one by one, by id. Files that are derived (pairs, manifest) are
written beside their place and renamed, so a file that exists is complete.

`resource` and `shipped_model` find the files that travel with the package.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import JsonValue, ValidationError

from rlaif.errors import RecordError, UserError
from rlaif.records import Record

R = TypeVar("R", bound=Record)

_HEAD = b'{"id":"'
_ID = slice(len(_HEAD), len(_HEAD) + 32)


class Table(Generic[R]):
    """One JSONL file of records with an `id` of 32 hex digits as their first field."""

    def __init__(self, path: Path, record: type[R], *, create: bool = True) -> None:
        """Open or create the table at `path`; the caller holds the folder's lock (see `lock_folder`).

        Without `create`, the file is only made when something is written.
        """
        self.path, self.record = path, record
        self.healed = 0
        """Torn last lines that were cut off on open: 0 or 1."""
        self._index: dict[bytes, int] = {}
        self._end = 0
        self._file: int | None = None
        if create or path.exists():
            self._open()
            self._load()

    def _open(self) -> int:
        """The open file; made if need be."""
        if self._file is None:
            try:
                # A link in a folder that came from somebody else must not lead our writing out of it.
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
            except OSError as error:
                if error.errno == errno.ELOOP:
                    hint = "put the file itself there"
                    raise UserError(
                        "is a link, and a run writes into its own folder only", where=self.path, hint=hint
                    ) from None
                raise _unwritable(self.path, error) from error
        return self._file

    def _load(self) -> None:
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    os.ftruncate(self._open(), self._end)
                    self.healed = 1
                    break
                if not (line.startswith(_HEAD) and line.endswith(b"}\n")):
                    raise RecordError(self.path, number, "this line is not a record of this table")
                try:
                    self._index[bytes.fromhex(line[_ID].decode())] = self._end
                except ValueError:
                    raise RecordError(self.path, number, "its `id` is not 32 hex digits") from None
                self._end += len(line)

    def __contains__(self, key: str) -> bool:
        """Whether a record with this id is on disk."""
        return bytes.fromhex(key) in self._index

    def __len__(self) -> int:
        """Records, by distinct id."""
        return len(self._index)

    def append(self, records: Iterable[R]) -> None:
        """Write records in one piece; they are on disk (as far as a killed process goes) when this returns."""
        offset, lines = self._end, []
        for record in records:
            line = record.model_dump_json().encode("utf-8") + b"\n"
            self._index[bytes.fromhex(record.id)] = offset  # type: ignore[attr-defined]
            lines.append(line)
            offset += len(line)
        data = b"".join(lines)
        try:
            while data:
                data = data[os.write(self._open(), data) :]
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._end = offset

    def get(self, key: str) -> R | None:
        """The record with this id, or None. Raises RecordError where the line breaks the schema."""
        offset = self._index.get(bytes.fromhex(key))
        return None if offset is None else self._read(key, offset)

    def _read(self, key: str, offset: int) -> R:
        """The record `key`, whose line was at `offset` when it was written or read first."""
        size = 2048
        while b"\n" not in (data := os.pread(self._open(), size, offset)):
            if len(data) < size:
                raise self._changed()
            size *= 4
        line = data[: data.index(b"\n")]
        if line[: _ID.stop] != _HEAD + key.encode():
            raise self._changed()
        return self._parse(line, offset)

    def _changed(self) -> UserError:
        what = "was changed by another program while this one had it open"
        return UserError(what, where=self.path, hint="run the same command again")

    def _parse(self, line: bytes, offset: int) -> R:
        try:
            record = self.record.model_validate_json(line)
            why = record.contradiction()
        except ValidationError as error:
            why = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'line'}: {e['msg']}" for e in error.errors()[:2])
        if why:
            with self.path.open("rb") as file:
                number = file.read(offset).count(b"\n") + 1
            raise RecordError(self.path, number, why)
        return record

    def __iter__(self) -> Iterator[R]:
        """Every record once, in file order."""
        for key, offset in sorted(self._index.items(), key=lambda entry: entry[1]):
            yield self._read(key.hex(), offset)

    def close(self) -> None:
        """Flush to the disk and close."""
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make `folder` and hold it for this process alone: two writers of one run are refused, not interleaved.

    The lock goes with the process, however it ends.
    """
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        _require_no_way_out(folder)
        lock = filelock.FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise UserError(
            "another process is writing here", where=folder, hint="wait for it, stop it, or set another `output`"
        ) from None
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def _require_no_way_out(folder: Path) -> None:
    """Raise UserError where a link in a folder leads out of it: whoever writes here would write there."""
    inside = folder.resolve()
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(inside):
                what = f"`{entry.name}` is a link that leads out of this folder, and only this folder is written to"
                raise UserError(what, where=folder, hint="remove the link, or put there what it leads to")


def require_writable(folder: Path) -> None:
    """Raise UserError where a folder cannot be made or written to. Nothing of the attempt is left."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        for each in new:
            with contextlib.suppress(OSError):
                each.rmdir()


@contextlib.contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """A file beside `path` to write; it takes that place when the block ends well, and is removed when it does not."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        # What lies there was left by a killed process, or put there by somebody else: never followed, never added to.
        draft.unlink(missing_ok=True)
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644))
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # it may be a folder, which is what the error said
            draft.unlink(missing_ok=True)


@contextlib.contextmanager
def record_writer(path: Path) -> Iterator[Callable[[Record], None]]:
    """Write a whole JSONL file record by record; nothing is seen at `path` before the block ends well."""
    with draft_of(path) as draft, draft.open("w", encoding="utf-8", newline="\n") as file:

        def write(record: Record) -> None:
            file.write(record.model_dump_json() + "\n")

        yield write


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write records as a whole JSONL file. Returns how many."""
    count = 0
    with record_writer(path) as write:
        for record in records:
            write(record)
            count += 1
    return count


def write_text(path: Path, text: str) -> None:
    """Write a whole text file."""
    with draft_of(path) as draft:
        draft.write_text(text, encoding="utf-8")


def read_records(path: Path, record: type[R]) -> Iterator[R]:
    """Stream the records of a JSONL file. Raises RecordError with the line on a broken one."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                read = record.model_validate_json(line)
            except ValidationError as error:
                raise RecordError(path, number, error.errors()[0]["msg"]) from None
            if why := read.contradiction():
                raise RecordError(path, number, why)
            yield read


def write_json(path: Path, value: JsonValue) -> None:
    """Write a readable JSON file."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write: {error.strerror}", where=path, hint="free the place or set another `output`")


_PACKAGE = Path(__file__).resolve().parent
SHIPPED = {"demo-judge": "judge", "demo-policy": "policy"}
"""Models that ship with the package, and their folders."""


def resource(name: str) -> Path:
    """The folder `constitutions`, `prompts` or `examples`; a wheel carries `rlaif/_shipped/NAME` (pyproject.toml)."""
    shipped = _PACKAGE / "_shipped" / name
    return shipped if shipped.is_dir() else _PACKAGE.parent / name


def shipped_model(name: str) -> Path | None:
    """The folder of a model that ships with the package (`demo-judge`, `demo-policy`), or None for any other name."""
    return _PACKAGE / "demo" / "models" / SHIPPED[name] if name in SHIPPED else None
