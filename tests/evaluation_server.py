"""Runs of templates/evaluate.py, each forked from this process, so that libraries are imported only once: as run_server.py."""

import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path

import datasets  # noqa: F401
import peft  # noqa: F401
import torch  # noqa: F401
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "templates"))
import evaluate

transformers.AutoModelForCausalLM, transformers.AutoTokenizer  # noqa: B018  # they are imported when they are first named


def run(arguments: list[str], folder: str, env: dict[str, str], **_: object) -> int:
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    os.environ |= env
    sys.argv[1:] = arguments
    try:
        return evaluate.main()
    except SystemExit as end:
        return end.code
    except BaseException:
        traceback.print_exc()
        return 1


gc.freeze()  # a collection in a run looks at what the run has made, not at all libraries
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended runs leave nothing behind
for line in sys.stdin:
    if process := os.fork():
        print(process, file=sys.__stdout__, flush=True)
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code = run(**json.loads(line))
    print("EXIT", code, flush=True)
    os._exit(code)
