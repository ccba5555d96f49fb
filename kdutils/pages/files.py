"""Files that appear whole or not at all, and never end a chapter."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path


def write(path: Path, fill: Callable[[Path], object]) -> bool:
    """Let `fill` write a temporary file beside `path`, then move it there; whether that could be done.

    A folder that cannot be written is reported, once a session, and work goes on.
    """
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch(0o644)  # less the umask: others may read what was measured
        fill(partial)
        os.replace(partial, path)
    except OSError as error:
        warnings.warn(
            f"nothing can be kept in {path.parent} ({error.strerror or error}): going on without; set KDUTILS_RUNS to "
            "a folder that can be written",
            stacklevel=1,  # always the same place, so that it is said once
        )
        return False
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return True
