"""Runs of templates/sft.py, each a process of its own, forked from this one so that libraries are imported only once.

Run in the template's environment. Each line on stdin is a run as JSON: {"arguments", "folder", "env", "fault"}; the
answer is its process id. Its output goes to FOLDER/log.txt, and ends with EXIT and its exit code.
"""

import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path

import unsloth  # noqa: F401 # isort: skip  # first: it patches what comes after it
import torch
import trackio  # noqa: F401
from huggingface_hub.utils import http_backoff
from trl import SFTTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "templates"))
import sft


def run(arguments: list[str], folder: str, env: dict[str, str], fault: list | None) -> int:
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    os.environ |= env
    sys.argv[1:] = arguments
    if fault:
        FAULTS[fault[0]](*fault[1:])
    try:
        return sft.main()
    except SystemExit as end:
        return end.code
    except BaseException:
        traceback.print_exc()
        return 1


def out_of_memory(most: int, step: int) -> None:
    """From this step on, memory holds at most so many sequences at once."""
    whole = SFTTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step >= step and self.args.per_device_train_batch_size > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return whole(self, *args, **kwargs)

    SFTTrainer.training_step = training_step


def out_of_memory_evaluating(most: int) -> None:
    """Memory holds at most so many sequences at once, which an evaluation finds first."""
    whole = SFTTrainer.prediction_step

    def prediction_step(self, *args, **kwargs):
        if self.args.per_device_eval_batch_size > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return whole(self, *args, **kwargs)

    SFTTrainer.prediction_step = prediction_step


def told_to_end(where: str) -> None:
    """SIGTERM comes in this function of the template."""
    whole = getattr(sft, where)

    def told(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return whole(*args, **kwargs)

    setattr(sft, where, told)


def unsloth_refuses() -> None:
    """Unsloth does not take the model."""

    def from_pretrained(*_, **__):
        raise NotImplementedError("Unsloth: this architecture is not supported yet.")

    unsloth.FastLanguageModel.from_pretrained = from_pretrained


def impatient() -> None:
    """What waits for the Hub to come back does so for a second, not for minutes."""
    http_backoff.__kwdefaults__.update(max_retries=1, base_wait_time=0.1)
    sft.PUSH_PAUSES_S = (0.2, 0.2)


def disk_full(at_step: int, most: int) -> None:
    """From this step on, no file can have more bytes than this."""
    whole = SFTTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step >= at_step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        return whole(self, *args, **kwargs)

    SFTTrainer.training_step = training_step


FAULTS = {
    fault.__name__: fault
    for fault in (out_of_memory, out_of_memory_evaluating, told_to_end, unsloth_refuses, impatient, disk_full)
}

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended runs leave nothing behind
for line in sys.stdin:
    if process := os.fork():
        print(process, file=sys.__stdout__, flush=True)
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code = run(**json.loads(line))
    print("EXIT", code, flush=True)
    os._exit(code)
