"""The user's own reward: a function in a Python file, called in processes of its own, each call within a time limit.

What a model wrote reaches it as text. Nothing here runs that text.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from .graders import as_score, clipped, described, grader_of_file

MOST_PROCESSES = 8
START_S = 120.0  # for a process to start and read the file, which may import much

# What each process runs: a line of JSON for each call, and one back. What the function prints goes to stderr.
WORKER = """
import json, os, runpy, sys, time

answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)
# From its source as it is now: compiled code that an import would take may be an earlier version's.
function = runpy.run_path(sys.argv[1], run_name="reward_file")[sys.argv[2]]
print("{}", file=answers, flush=True)
for line in sys.stdin:
    began, found = time.monotonic(), {}
    try:
        score = function(*json.loads(line))
        found["score"] = float(score) if not isinstance(score, (str, bytes)) else score
    except (Exception, SystemExit) as error:
        try:
            found["failure"] = f"{type(error).__name__}: {error}"
        except Exception:
            found["failure"] = type(error).__name__
    print(json.dumps(found | {"seconds": time.monotonic() - began}), file=answers, flush=True)
"""


class Call(NamedTuple):
    """score: 0 where it failed; failure: why, or ""; seconds: that the function itself took."""

    score: float
    failure: str
    seconds: float


class Caller:
    """A process that calls the function, one answer after the other; started when it is needed, and again when it was ended."""

    def __init__(self, file: str, hook: str):
        self.words = [sys.executable, "-c", WORKER, file, hook]
        self.process: subprocess.Popen[str] | None = None
        self.answers: queue.Queue[str | None] = queue.Queue()

    def ask(self, values: tuple[str, str, Mapping[str, Any]], limit_s: float) -> Call:
        try:
            if self.process is None and self.start() is None:
                return self.failed("its process does not start", 0.0)
            self.process.stdin.write(json.dumps(values, default=str) + "\n")  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]
            line = self.answers.get(timeout=limit_s)
        except queue.Empty:
            return self.failed(f"it took more than {limit_s:g} s", limit_s)
        except OSError as error:
            return self.failed(described(error), 0.0)
        return self.failed("its process has ended", 0.0) if line is None else call_of(json.loads(line))

    def start(self) -> str | None:
        self.answers = queue.Queue()
        self.process = subprocess.Popen(
            self.words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
        )
        threading.Thread(target=self.read, args=(self.process, self.answers), daemon=True).start()
        try:
            return self.answers.get(timeout=START_S)
        except queue.Empty:
            return None

    @staticmethod
    def read(process: subprocess.Popen[str], answers: queue.Queue[str | None]) -> None:
        for line in process.stdout or ():
            answers.put(line)
        answers.put(None)

    def failed(self, why: str, seconds: float) -> Call:
        self.close()
        return Call(0.0, why, seconds)

    def close(self) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()
        self.process = None


def call_of(found: Mapping[str, Any]) -> Call:
    """What a process answered; a score that is no number from 0 to 1 is a failure."""
    seconds = float(found["seconds"])
    if "failure" in found:
        return Call(0.0, clipped(str(found["failure"])), seconds)
    try:
        return Call(as_score(found["score"]), "", seconds)
    except (TypeError, ValueError) as error:
        return Call(0.0, described(error), seconds)


class RewardFile:
    """Calls the function `hook` of a file. Raises Stop, once made, where the file has no such function."""

    def __init__(self, file: str, limit_s: float, hook: str = "grade"):
        grader_of_file(file, hook)  # what is wrong with it is said before anything else is done
        self.limit_s, count = limit_s, min(os.cpu_count() or 1, MOST_PROCESSES)
        self.callers = [Caller(os.path.abspath(file), hook) for _ in range(count)]

    def calls(self, values: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[Call]:
        """Of answers, references and rows, by as many processes as there are processors."""
        free: queue.Queue[Caller] = queue.Queue()
        for caller in self.callers:
            free.put(caller)

        def ask(one: tuple[str, str, Mapping[str, Any]]) -> Call:
            caller = free.get()
            try:
                return caller.ask(one, self.limit_s)
            finally:
                free.put(caller)

        with ThreadPoolExecutor(len(self.callers)) as pool:
            return list(pool.map(ask, values))

    def close(self) -> None:
        for caller in self.callers:
            caller.close()
