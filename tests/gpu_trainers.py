"""Runs of templates/dpo.py with the trainers that Unsloth makes out of TRL's on a GPU, on this machine's processor.

Run in the template's environment: gpu_trainers.py FOLDER LOSS=DATASET... -- ARGUMENTS. Each run's events are in FOLDER/LOSS.log,
with one more, `told`: the values that its trainer was given, and the names of its classes.
"""

import os
import sys

os.environ |= {"TORCHDYNAMO_DISABLE": "1", "UNSLOTH_COMPILE_DISABLE": "1"}  # compiling for a processor takes minutes
os.environ["UNSLOTH_COMPILE_LOCATION"] = os.path.join(sys.argv[1], "compiled")

import unsloth  # noqa: F401, E402 # isort: skip  # first: it patches what comes after it
from unsloth.models import rl  # noqa: F401, E402 # isort: skip  # with no GPU it is not imported, and nothing is rewritten

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "templates"))
import dpo  # noqa: E402

build = dpo.build_trainer


def telling(*args, **kwargs):
    trainer = build(*args, **kwargs)
    values = {name: repr(value) for name, value in trainer.args.to_dict().items()}
    dpo.emit("told", values=values, classes=[kind.__name__ for kind in type(trainer).__mro__])
    return trainer


dpo.build_trainer = telling
folder, *rest = sys.argv[1:]
at = rest.index("--")
for case in rest[:at]:
    loss, _, dataset = case.partition("=")
    if not (process := os.fork()):
        os.makedirs(os.path.join(folder, loss), exist_ok=True)
        os.chdir(os.path.join(folder, loss))
        log = os.open(os.path.join(folder, f"{loss}.log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        sys.argv[1:] = ["--loss", loss, "--dataset", dataset, *rest[at + 1 :]]
        code = dpo.main()
        print("EXIT", code, flush=True)
        os._exit(code)
    os.waitpid(process, 0)
