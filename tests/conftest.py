"""What tests share: the training environment, tokenizers around real chat templates, and the test Hub.

Beside it: commands.py starts the skill's commands, hubs.py sets up test Hubs, tiny_models.py makes models.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from commands import Commands
    from hub import Hub

ROOT = Path(__file__).resolve().parents[1]
SFT = ROOT / "templates" / "sft.py"
ROWS = ROOT / "demo" / "stdlib-docs.jsonl"
UV = str(Path(sys.executable).with_name("uv"))

# Before any library reads them: no test may touch its user's cache, token or the real Hub.
os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "0"}
# Two processes train at once (make test): with more threads than cores, OpenMP spins, and each takes ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Many processes import the same libraries: where none may keep what it has compiled, that takes longer than all else.
sys.dont_write_bytecode = False
# A shell that starts tests in the background has Ctrl-C ignored, by them and by all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("HF_TOKEN", "HF_HOME", "HF_ENDPOINT", "CC", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(name, None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only the tests that need no fixture but pytest's own")


# Files that take minutes come first, so that all workers end together. The rest is in the order of the alphabet.
LONGEST = (
    "faults_many", "export", "compare", "packing", "several", "kept", "evals", "grpo", "dpo_runs", "adapters", "evaluate",
    "training", "serve", "installed", "faults", "data", "check", "faults_local", "estimate", "evidence", "faults_job", "money",
    "evaluation", "serve_faults", "trust", "masks", "submit", "status", "properties", "commands",
)  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """make quick: what needs a Hub, a model, an environment or a job asks for it by a fixture of ours."""
    order = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    if not config.getoption("--quick"):
        return
    left = [item for item in items if not is_quick(item)]
    items[:] = [item for item in items if is_quick(item)]
    config.hook.pytest_deselected(items=left)


def is_quick(item: pytest.Item) -> bool:
    used = [made for name in item.fixturenames for made in item._fixtureinfo.name2fixturedefs.get(name, ())]
    return all(made.func.__module__.startswith("_pytest.") for made in used) and not item.get_closest_marker("slow")


@pytest.fixture(scope="session")
def training_python() -> str:
    """The interpreter of the template's own environment, with the real torch, Unsloth and TRL."""
    return python_of(SFT)


def python_of(script: Path) -> str:
    """The interpreter of a script's own environment, made where it is missing.

    llama.cpp's C++ is optimised less than for users, which takes a quarter off its build; what computes on weights is mostly C.
    """
    made = uv_of_cache("sync", "--quiet", "--script", str(script), CMAKE_ARGS="-DCMAKE_CXX_FLAGS_RELEASE=-O1")
    assert made.returncode == 0, made.stderr
    found = subprocess.run([UV, "python", "find", "--script", str(script)], check=True, capture_output=True, text=True)
    return found.stdout.strip()


def uv_of_cache(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """What uv says, of what is in its cache where that suffices, with env where it does not.

    Some registries' answers may not be kept: asked again, they count as new, and what was built of them is built again.
    """
    offline = subprocess.run([UV, *words], capture_output=True, text=True, env=os.environ | {"UV_OFFLINE": "1"})
    if offline.returncode == 0:
        return offline
    return subprocess.run([UV, *words], capture_output=True, text=True, env=os.environ | env)


def once(temporary: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A file or folder that all workers of a session share: the first that needs it makes it."""
    shared = temporary.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    with FileLock(shared / f"{name}.lock"):
        if not (shared / name).exists():
            make(shared / f"{name}.partial")
            (shared / f"{name}.partial").rename(shared / name)
    return shared / name


@pytest.fixture(scope="session")
def tiny_model(training_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LFM2 with random weights, a tokenizer and a chat template."""
    make = [training_python, str(ROOT / "demo" / "tiny_model.py")]
    return once(tmp_path_factory, "tiny-lfm2", lambda folder: subprocess.run([*make, folder], check=True, capture_output=True))


@pytest.fixture(scope="session")
def runs(training_python: str, tmp_path_factory: pytest.TempPathFactory):
    """Starts many runs of the template, each in a process of its own, without importing the libraries for each."""
    from runs import Runs

    with Runs(training_python, tmp_path_factory.mktemp("runs")) as runs:
        yield runs


@pytest.fixture(scope="session")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's rows as a data set's folder."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "train.jsonl").write_bytes(ROWS.read_bytes())
    return folder


@pytest.fixture
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hub]:
    """A Hub with Ada, ada/tiny and ada/docs, whose jobs complete without running anything.

    `@pytest.mark.hub(...)` says what is different: model= (tiny: it can be trained; shape: quick to make; none),
    rows=False, and the Hub's own options.
    """
    from hubs import hub_of_ada
    from tiny_models import shape_of_a_model

    marker = request.node.get_closest_marker("hub")
    how = {"model": "tiny", "rows": True} | (marker.kwargs if marker else {})
    models = {
        "tiny": lambda: request.getfixturevalue("tiny_model"),
        "shape": lambda: shape_of_a_model(tmp_path / "model"),
        "none": lambda: None,
    }
    model, rows = models[how.pop("model")](), request.getfixturevalue("docs") if how.pop("rows") else None
    with hub_of_ada(tmp_path / "hub", model=model, rows=rows, **how) as hub:
        yield hub


@pytest.fixture
def commands(hub: Hub, tmp_path: Path) -> Commands:
    """Ada's commands, on a machine of her own. They do not wait long for a Hub that says no."""
    from commands import HASTY, Commands
    from hubs import ADA

    return Commands(hub.env(token=ADA), tmp_path, settings=HASTY)


@pytest.fixture(scope="session")
def chat_templates(training_python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The chat templates that the installed trl and unsloth packages carry, by `trl/NAME` and `unsloth/NAME`."""
    made = once(
        tmp_path_factory, "chat_templates.json", lambda file: file.write_text(json.dumps(find_templates(training_python)))
    )
    return json.loads(made.read_text())


def find_templates(training_python: str) -> dict[str, str]:
    purelib = subprocess.run(
        [training_python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    found = {f"trl/{path.stem}": path.read_text("utf-8") for path in Path(purelib, "trl/chat_templates").glob("*.jinja")}
    said = subprocess.run(
        [training_python, str(ROOT / "tests" / "chat_templates.py")], check=True, capture_output=True, text=True
    ).stdout
    unsloth = json.loads(said.splitlines()[-1])
    return found | {f"unsloth/{name}": template for name, (template, _) in unsloth.items()}


def make_tokenizer(chat_template: str | None, metaspace: bool = False):
    """A tokenizer around a chat template: its tags are tokens, all else is bytes (or, like Llama 2's, ▁ pieces)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tags = sorted(set(re.findall(r"<[|｜]?[\w/▁|｜:]+?[|｜]?>|\[/?INST\]", chat_template or "")) - {"<think>", "</think>"})
    tokenizer = Tokenizer(models.BPE(unk_token="<UNK>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace() if metaspace else pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.Metaspace() if metaspace else decoders.ByteLevel()
    text = ["What is 2+2? It is 4. And 3+3? Six.", "user assistant system <think>"] * 2
    alphabet = [] if metaspace else pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<UNK>", "<BOS>", "<EOS>", *tags], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<BOS>", eos_token="<EOS>", unk_token="<UNK>", chat_template=chat_template
    )
