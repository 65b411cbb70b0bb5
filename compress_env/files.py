"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to instead of `path`, which is replaced once the block succeeds.

    Whoever reads `path` meanwhile sees the old file. If the block or the replacement fails, `path`
    stays as it was and nothing is left beside it.

    Args:
        path: The file to make or to replace.

    Yields:
        A path without a file, in the same directory and with the same suffix, that no other
        process or thread is given.

    Raises:
        OSError: If `path` cannot be replaced.
    """
    # The writer makes the file, so that its permissions follow the umask; mkstemp's would not.
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
