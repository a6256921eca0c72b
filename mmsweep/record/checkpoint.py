"""The files of a checkpoint, written atomically and verified by checksums. `training.checkpoint` handles the tensors.

epoch-0003/{weights.safetensors, resume.safetensors, resume.json, manifest.json}
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NotRequired

from typing_extensions import TypedDict

from mmsweep.environment_faults import environment_fault
from mmsweep.errors import UserError
from mmsweep.record.files import OPEN, apply_umask, read_record, write_atomically

MANIFEST = "manifest.json"
WEIGHTS, RESUME, STATE = "weights.safetensors", "resume.safetensors", "resume.json"


class _Best(TypedDict):
    epoch: int
    metrics: dict[str, float]


class CheckpointFile(TypedDict):
    """`resume.json` of a checkpoint: the epoch after which it was written, and the best epoch so far."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    epoch: int
    best: NotRequired[_Best]


@contextlib.contextmanager
def new_checkpoint(target: Path) -> Iterator[Path]:
    """Write a checkpoint atomically: the block writes WEIGHTS, RESUME and STATE into the folder that it is given.

    When the block ends, the files and their checksums are synced to disk, and the folder replaces `target`.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for name in (WEIGHTS, RESUME, STATE):
            apply_umask(temporary / name)
            with open(temporary / name, "rb") as file:
                os.fsync(file.fileno())  # the report that names the checkpoint is synced too
        manifest = {name: _checksum(temporary / name) for name in (WEIGHTS, RESUME, STATE)}
        write_atomically(temporary / MANIFEST, json.dumps(manifest, indent=1))  # last: it marks the others complete
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk needs the space
        raise


def check_files(folder: Path, *names: str) -> bool:
    """Compare files of a checkpoint with the checksums in its manifest.

    Returns:
        Whether there are checksums: a checkpoint of an older mmsweep has no manifest.

    Raises:
        UserError: a file is missing, damaged or cannot be read.
    """
    try:
        for name in names:
            if not (folder / name).is_file():
                raise unreadable(folder, f"{name} is missing")
        manifest = read_record(folder / MANIFEST, dict[str, str])
        for name in names:
            if manifest is not None and _checksum(folder / name) != manifest.get(name):
                raise unreadable(folder, f"{name} differs from its checksum in {MANIFEST}")
    except OSError as error:
        raise unreadable(folder, str(error)) from error
    return manifest is not None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, as a sentence; None if it is intact.

    Raises:
        UserError: it could not be checked because of a disk or memory fault.
    """
    try:
        if not check_files(folder, WEIGHTS, RESUME, STATE):
            _check_unsigned(folder)
    except UserError as problem:
        if environment_fault(problem):
            raise
        return f"{os.path.relpath(str(problem.file), folder.parents[1])}: {problem.problem}"
    return None


def _check_unsigned(folder: Path) -> None:
    """Check a checkpoint without checksums by comparing its headers with the lengths of its files."""
    from safetensors import SafetensorError, safe_open

    read_record(folder / STATE, CheckpointFile)
    try:
        for name in (WEIGHTS, RESUME):
            with safe_open(folder / name, framework="numpy"):
                pass
    except (OSError, ValueError, SafetensorError) as error:
        raise unreadable(folder, str(error)) from error


def unreadable(folder: Path, reason: str) -> UserError:
    """The error for a damaged checkpoint."""
    return UserError(f"the checkpoint cannot be read ({reason})", file=folder, expected="a checkpoint folder")


def epoch_of(checkpoint: Path) -> int:
    """The epoch after which a checkpoint was written, from its folder's name."""
    return int(checkpoint.name.removeprefix("epoch-"))


def _checksum(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
