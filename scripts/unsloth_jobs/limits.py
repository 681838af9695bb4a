"""Bounds for code that comes with a model: its chat template is a program, and may run for ever or ask for all memory."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path

from .errors import UserError

TEMPLATE_S = 20  # for a question and an answer, which take milliseconds
ROWS_S = 600  # for the sampled rows
MEMORY = 4 << 30  # bytes, beside those that the process holds already


class Overrun(BaseException):
    """Raised in code that takes too long; no `except Exception` of a library stops it."""


@contextlib.contextmanager
def bounded(name: str, seconds: float) -> Iterator[None]:
    """Raises UserError where what is done within takes longer, or more memory than MEMORY. name: the model's."""
    watch = threading.Timer(seconds, interrupt, (threading.get_ident(),))
    watch.daemon = True
    watch.start()
    try:
        with limited_memory():
            yield
    except (Overrun, MemoryError) as error:
        what = "the memory of this machine" if isinstance(error, MemoryError) else f"longer than {seconds:.0f} seconds"
        raise UserError(
            "bad_chat_template",
            f"The chat template of {name} takes {what} to render rows.",
            "Choose another model: this one's template would hold up the job as well.",
        ) from None
    finally:
        watch.cancel()


def interrupt(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Overrun))


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Asking for more than MEMORY raises MemoryError, where the system knows such limits."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text("utf-8").split()[0])
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
    except (ImportError, ValueError, OSError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
