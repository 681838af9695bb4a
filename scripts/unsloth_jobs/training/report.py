"""What a run says: events, a reason to stop, and how a failed run ends."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .secrets import redacted


class Stop(Exception):
    """The run cannot go on, for a reason its user can mend: a code, what is wrong, and what to do about it."""

    def __init__(self, code: str, message: str, fix: str):
        super().__init__(message)
        self.code, self.message, self.fix = code, message, fix


SILENT = "UNSLOTH_JOBS_SILENT"  # set in all of a run's processes but the first: they print no events
LAUNCHED = "UNSLOTH_JOBS_LAUNCHED"  # set in the processes of a run on several GPUs: what failed, its launcher says
LAST_EVENTS: dict[str, dict[str, Any]] = {}  # the newest event of each name: the model card shows what the log showed
# JSON leaves these as they are, and some readers end a line there: an event is one line.
SEPARATORS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}


told_to_end = threading.Event()  # by a signal, while there was nothing to save


def emit(event: str, **values: Any) -> None:
    """One line for status, logs and people, without secrets.

    Raises KeyboardInterrupt once the run was told to end: where a library has swallowed the first, as some do amid their
    imports, the run gets no further than its next event.
    """
    if told_to_end.is_set() and event != "failed":
        raise KeyboardInterrupt
    LAST_EVENTS[event] = values
    if os.environ.get(SILENT) and event != "failed":
        return
    line = json.dumps({"event": event, "time": round(time.time(), 1), **values}, ensure_ascii=False, default=str)
    print("EVENT " + redacted(line.translate(SEPARATORS)), flush=True)


def emit_failed(code: str, message: str, fix: str) -> None:
    """The last event of a run that failed; a process among several leaves it to the launcher, where all their failures meet."""
    failed = {"code": code, "message": message, "fix": fix}
    if not os.environ.get(LAUNCHED):
        emit("failed", **failed)
        return
    told = {"message": message, "timestamp": int(time.time()), "failed": failed}
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(told), encoding="utf-8")


def print_traceback(with_text: bool = True) -> None:
    """The traceback of the exception at hand, none of whose lines can be taken for an event: it may quote a model's files.

    with_text: with what the exception says, which may quote whatever was at hand; else its kind stands alone.
    """
    kind, _, place = sys.exc_info()
    said = traceback.format_exc() if with_text else "".join([*traceback.format_tb(place), kind.__name__ if kind else ""])
    print(redacted(said).replace("EVENT {", "EVENT: {"), file=sys.stderr, flush=True)


def ended_from_outside(again: str) -> Stop:
    """again: how the run is taken up again."""
    return Stop("cancelled", "The run was ended from outside.", f"{again[0].upper()}{again[1:]}.")


# As Python, safetensors and torch put it; a quota and a limit of a file's size are as good as full.
DISK_FULL = re.compile(
    r"No space left|File too large|quota exceeded|os error (28|27|122)|PytorchStreamWriter failed writing|unexpected pos \d+ vs \d+"
)


def exit_code(run: Callable[[], None], again: str) -> int:
    """Run to the end; 0, or 1 after a `failed` event. again: how it is taken up again, for the event's fix."""
    if not sys.stderr.isatty():  # in a log, each refresh of a progress bar is a line
        os.environ.setdefault("TQDM_MININTERVAL", "30")
    try:
        run()
        return 0
    except Stop as stop:
        emit_failed(stop.code, stop.message, stop.fix)
    except (KeyboardInterrupt, Exception) as error:
        if isinstance(error, KeyboardInterrupt) or told_to_end.is_set():
            emit_failed(**vars(ended_from_outside(again)))
        elif DISK_FULL.search(str(error)):
            room = "Choose a flavor with a larger disk" if os.environ.get("JOB_ID") else "Make room on this disk"
            emit_failed("disk_full", f"The disk is full: {error}", f"{room}; {again}.")
        else:
            emit_failed("error", f"{type(error).__name__}: {error}", "The log has the traceback.")
            print_traceback()
    return 1
