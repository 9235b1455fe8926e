"""Read and write files past the system's cache, a mebibyte at a time.

What a backup reads is read once, and what a restore writes is read by a server that goes past the
cache itself. Through the cache a gibibyte took 2.9 s of a processor on a virtual machine, where
each page is fetched from the host first; past it, 0.2 s. And a commit waits behind what is asked of
the disk at once: clients' p50 was 244 ms beside reads of 8 MiB, 19 ms beside as many bytes in reads
of 1 MiB, 10 ms beside none.

Past the cache go whole blocks of ALIGN bytes only, to and from memory that is aligned (open(2),
"O_DIRECT"). What is left at the ends of a write goes through the cache: a block is never written
both ways. A file system that can do no other has it all through the cache.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Not less than a page: else the end of one write and the beginning of another share one.
ALIGN = max(4096, mmap.PAGESIZE)
BLOCK = 1 << 20
_DIRECT = getattr(os, "O_DIRECT", 0)
_own = threading.local()


def read(path: Path, offset: int, length: int) -> bytes:
    """``length`` bytes from ``offset``; fewer when the file ends before."""
    start, end = offset // ALIGN * ALIGN, _up(offset + length)
    buffer, got = _buffer(end - start), 0
    with _opened(path, os.O_RDONLY) as file, memoryview(buffer) as view:
        while got < end - start:
            asked = min(BLOCK, end - start - got)
            found = os.preadv(file, [view[got : got + asked]], start + got)
            got += found
            if found < asked:  # the end of the file
                break
    return buffer[offset - start : min(offset - start + length, got)]


def write(path: Path, offset: int, data: bytes | memoryview) -> None:
    """Write all of ``data`` at ``offset`` of a file that is there.

    It is on the disk after an fsync of the file. Raises OSError.
    """
    end = offset + len(data)
    first = min(_up(offset), end)
    last = max(end // ALIGN * ALIGN, first)
    with memoryview(data) as view:
        for at, stop in ((offset, first), (last, end)):
            if at < stop:
                with path.open("r+b", buffering=0) as file:
                    _all(path, file.fileno(), view[at - offset : stop - offset], at)
        if first < last:
            buffer = _buffer(last - first)
            buffer[: last - first] = view[first - offset : last - offset]
            with _opened(path, os.O_WRONLY) as direct, memoryview(buffer) as aligned:
                for at in range(0, last - first, BLOCK):
                    _all(path, direct, aligned[at : min(at + BLOCK, last - first)], first + at)


def _all(path: Path, file: int, data: memoryview, offset: int) -> None:
    try:
        written = os.pwrite(file, data, offset)
    except OSError as error:
        error.filename = str(path)
        raise
    if written != len(data):
        raise OSError(errno.EIO, f"{written} of {len(data)} bytes were written", str(path))


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    try:
        file = os.open(path, flags | os.O_CLOEXEC | _DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        file = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)


def _up(at: int) -> int:
    return -(-at // ALIGN) * ALIGN


def _buffer(size: int) -> mmap.mmap:
    """Aligned memory of this thread, used again for every call."""
    held: mmap.mmap | None = getattr(_own, "buffer", None)
    if held is None or len(held) < size:
        held = _own.buffer = mmap.mmap(-1, max(size, 1))
    return held
