"""Atomic file writes: complete or not at all, whatever kills the writer.

Writers work under a hidden temporary name in the same folder and rename when everything is on the disk. This module
knows nothing of what is written.
"""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from daptq.errors import OutputExistsError, OutputWriteError

__all__ = ["flush", "new_directory", "require_new_output", "write_bytes", "writing"]


def require_new_output(directory: Path) -> None:
    """Refuses a folder that a write would have to overwrite; call it before any long work.

    Raises:
        OutputExistsError: `directory` is a file or a folder with something in it.
    """
    if not directory.is_dir():
        if directory.exists() or directory.is_symlink():
            raise OutputExistsError(
                f"output must be a new or empty folder, got the file {directory}. Choose another name."
            )
    elif any(directory.iterdir()):
        raise OutputExistsError(
            f"output must be a new or empty folder, got {directory}, which is not empty. "
            "Choose another name or delete the folder."
        )


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name and renames it, so that `path` is complete or as before.

    Raises:
        OutputWriteError: The disk refused a write.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            flush(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """A hidden sibling of `directory` that takes its name on success and vanishes on any exception.

    The writer holds a lock on the sibling; the kernel releases it when the writer dies, so a sibling whose lock is free
    was left by a killed writer, and the next writer of the same name removes it.

    Args:
        directory: Resolved path of a folder that does not exist or is empty. Missing parents are created.

    Raises:
        OutputWriteError: The disk refused a write.
    """
    with writing(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in directory.parent.glob(f".{glob.escape(directory.name)}.*.partial"):
            _remove_if_abandoned(abandoned)
        temporary = directory.parent / f".{directory.name}.{secrets.token_hex(4)}.partial"
        temporary.mkdir()
        lock = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield temporary
        with writing(directory):
            flush(temporary)
            temporary.rename(directory)
            flush(directory.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(lock)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns a refusal of the disk into an error that names `target`.

    Raises:
        OutputWriteError: The body raised OSError or the shard writer's own error.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OutputWriteError(
            f"{target} must be writable, got {reason!r}. Nothing was written there; "
            "free disk space or choose another place."
        ) from error


def flush(path: Path) -> None:
    """Waits until the bytes of a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_if_abandoned(folder: Path) -> None:
    """Deletes a temporary folder unless a living writer holds its lock."""
    with suppress(FileNotFoundError):  # Another writer was quicker.
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            return
        finally:
            os.close(lock)
