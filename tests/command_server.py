"""The commands, one after the other in this one process: their libraries take longer to import than most of them take.

Each line on stdin is a call as JSON: {"script", "words", "patience_s", "timeout_s"}; the answer is {"code", "stdout",
"stderr", "rss", "files"}: what the command said, the bytes that this process holds then, and its open files. The seconds are
those that the commands wait for a Hub that says no, and for one that does not answer.
"""

import contextlib
import importlib
import io
import json
import sys
import traceback
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from unsloth_jobs.jobs import submission
from unsloth_jobs.lookup import client

this = psutil.Process()
connect = client.connect


def call(script: str, words: list[str], patience_s: float, timeout_s: float) -> dict:
    sys.argv[1:] = words
    client.PATIENCE_S = patience_s
    client.connect = lambda _=None: connect(timeout_s)
    submission.SEARCH_AFTER_S = (0.0, patience_s)
    said, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        try:
            importlib.import_module(script).app(words)
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
    return {
        "code": code,
        "stdout": said.getvalue(),
        "stderr": errors.getvalue(),
        "rss": this.memory_info().rss,
        "files": this.num_fds() if hasattr(this, "num_fds") else this.num_handles(),
    }


for line in sys.stdin:
    print(json.dumps(call(**json.loads(line))), file=sys.__stdout__, flush=True)
