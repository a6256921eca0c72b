"""What the environment is to blame for, and what a configuration."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from mmsweep.environment_faults import environment_fault
from mmsweep.errors import UserError


def refused(cause: BaseException) -> UserError:
    try:
        try:
            raise cause
        except type(cause) as error:
            raise UserError("the prepared data cannot be written") from error
    except UserError as problem:
        return problem


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "No space left on device: /a/b"),
        (OSError(errno.EIO, "x"), "Input/output error"),
        (OSError(errno.ESTALE, "x", "m"), "Stale file handle: m"),
        (OSError(errno.EDQUOT, "x"), "Disk quota exceeded"),
        (OSError(errno.EROFS, "x"), "Read-only file system"),
        (OSError(errno.EMFILE, "x"), "Too many open files"),
        (ConnectionResetError(errno.ECONNRESET, "x"), "Connection reset by peer"),
        (MemoryError("Unable to allocate 3 GiB"), "out of memory (Unable to allocate 3 GiB)"),
        (MemoryError(), "out of memory"),
        (SafetensorError("Error while serializing: No space left on device (os error 28)"), "os error 28"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), "allocate"),
        (RuntimeError("Traceback:\n  line 3\nOSError: [Errno 28] No space left on device"), "[Errno 28]"),
        (sqlite3.OperationalError("database or disk is full"), "database or disk is full"),
        (refused(OSError(errno.ENOSPC, "x", "f")), "No space left on device: f"),
    ],
)
def test_faults_of_the_environment(problem: BaseException, said: str) -> None:
    assert said in str(environment_fault(problem))


@pytest.mark.parametrize(
    "problem",
    [
        ValueError("a bad value"),
        FileNotFoundError(errno.ENOENT, "no such file", "weights"),
        OSError("image file is truncated"),
        UserError("an encoder lies nowhere", key="model.encoders.image.name"),
        refused(FileNotFoundError(errno.ENOENT, "no such file", "weights")),
        SafetensorError("Error while deserializing header: HeaderTooSmall"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),  # the worker asks who holds the memory
        sqlite3.DatabaseError("file is not a database"),
    ],
)
def test_what_may_be_a_configurations_own(problem: BaseException) -> None:
    assert environment_fault(problem) is None


def test_a_real_file_system_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError) as found, open("/dev/full", "w") as file:
        file.write("x" * 100_000)
    assert "No space left on device" in str(environment_fault(found.value))
