"""Each command that a document names is run: ours and `hf` against the test Hub, with the placeholders filled in."""

from __future__ import annotations

import functools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Commands
from conftest import ROOT, UV
from documents import COMMANDS, DATASET, MODEL, commands_in, filled, flags
from hub import Hub
from hubs import ADA, hub_of_ada
from tiny_models import zero_adapter


class Bench:
    """A Hub with the model and the data set that the documents name, and a job submitted to it."""

    def __init__(self, hub: Hub, commands: Commands, training_python: str):
        self.hub, self.commands, self.training_python = hub, commands, Path(training_python)
        arguments = ["--", "--base-model", MODEL, "--dataset", DATASET]
        self.job = commands.json("submit.py", "templates/sft.py", "--yes", "--max-usd", "9", *arguments)["job_id"]
        hub.jobs.wait(self.job)

    def words(self, command: str) -> list[str]:
        """With the job's id; the job runs where it is to be cancelled, and has ended elsewhere, so that no command waits."""
        self.hub.jobs.set(self.job, stage="RUNNING" if "cancel" in command else "COMPLETED", logs=["Saved."])
        words = shlex.split(command)
        names = {"JOB": self.job} | ({"GROUP": self.group} if "GROUP" in words else {})
        return [names.get(word, word) for word in words]

    @functools.cached_property
    def group(self) -> str:
        """A comparison that has ended."""
        arguments = ["--vary", "lora-r=8,16", "--yes", "--max-usd", "9", "--", "--base-model", MODEL, "--dataset", DATASET]
        begun = self.commands.json("submit.py", "templates/sft.py", *arguments)
        for job in begun["jobs"]:
            self.hub.jobs.wait(job["job_id"])
        return begun["group_id"]

    def beside_trainer(self, program: str) -> str:
        """A program of the template's own environment."""
        return str(self.training_python.with_name(program))

    def run(self, *words: str) -> str:
        done = subprocess.run(words, cwd=ROOT, env=self.commands.env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, docs: Path, training_python: str) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("bench")
    with hub_of_ada(root / "hub") as hub:
        hub.add_repo(MODEL, tiny_model)
        hub.add_repo(DATASET, docs, type="dataset")
        (root / "pairs").mkdir()
        pair = {"prompt": "Which colour has the sky?", "chosen": "Blue.", "rejected": "Green."}
        (root / "pairs" / "train.jsonl").write_text("".join(json.dumps(pair | {"prompt": f"{n}?"}) + "\n" for n in range(99)))
        hub.add_repo("ada/pairs", root / "pairs", type="dataset")
        (root / "prompts").mkdir()
        sums = [json.dumps({"prompt": f"What is {n} and 1?", "answer": str(n + 1)}) + "\n" for n in range(99)]
        (root / "prompts" / "train.jsonl").write_text("".join(sums))
        hub.add_repo("ada/prompts", root / "prompts", type="dataset")
        tuned = zero_adapter(root / "tuned", MODEL, "model.layers.2.self_attn.q_proj", 128)
        hub.add_repo("ada/tuned", tuned, private=True)  # OWNER/NAME, which the documents export
        commands = Commands(hub.env(token=ADA), root)
        commands.cwd = ROOT
        yield Bench(hub, commands, training_python)


FORKED = (
    ["check.py", MODEL, DATASET, "--json"],
    ["submit.py", "templates/sft.py", "--", "--base-model", MODEL, "--dataset", DATASET],
)


@pytest.mark.parametrize("command", FORKED)
def test_a_command_that_is_forked_is_like_one_that_is_started(bench, command):
    """With an environment of its own: see command_server.py."""
    said = []
    for fresh in (True, False):
        commands = Commands(bench.hub.env(token=ADA), ROOT, fresh=fresh)
        done = commands.run(*command, code=None)
        kept = {path.relative_to(commands.env["HF_HOME"]).name for path in Path(commands.env["HF_HOME"]).rglob("*.json")}
        said.append((done.returncode, done.stdout, done.stderr, kept))
    assert said[0] == said[1] and said[0][1]


# How each kind of command is run. ------------------------------------------------------------------------------


def ours(bench: Bench, command: str) -> None:
    """As a user runs it; a submit without approval ends with its plan and exit code 3."""
    script, *arguments = bench.words(command)
    if flags(command) == set(arguments) and arguments != ["--all"]:  # only a word on one of its flags
        assert flags(command) <= set(re.findall(r"--[\w-]+", bench.commands.run(script, "--help").stdout))
        return
    approved = "PLAN_ID" in arguments
    if approved:
        at = arguments.index("PLAN_ID")
        arguments[at] = bench.commands.json(script, *arguments[: at - 1], *arguments[at + 1 :], code=3)["plan_id"]
    done = bench.commands.run(script, *arguments, code=3 if script in ("submit.py", "serve.py") and not approved else 0)
    assert done.stdout.strip()


NAMED = ("hf jobs", "hf upload", "hf buckets sync", "hf repos delete")  # without what it needs to run, to say which is meant


def of_hf(bench: Bench, command: str) -> None:
    """With the real `hf`. It asks for the token to log in with, where none is given."""
    words = bench.words(command)
    words += ["--token", ADA] if words[1:3] == ["auth", "login"] else []
    words += ["--help"] if command in NAMED else []
    created = len(list(bench.hub.jobs))
    bench.run(str(Path(sys.executable).with_name("hf")), *words[1:])
    assert len(list(bench.hub.jobs)) - created == (words[1:4] == ["jobs", "uv", "run"])


def flags_of_hf(bench: Bench, command: str) -> None:
    """The real `hf` has this command with these flags."""
    words = command.split()[1:3]
    said = bench.run(str(Path(sys.executable).with_name("hf")), *words, "--help")
    assert flags(command) <= set(re.findall(r"--[\w-]+", said))


def by_its_help(bench: Bench, command: str) -> None:
    """What takes long, or serves until it is ended, is only asked whether it has these flags."""
    words = shlex.split(re.sub(r"^(uv run|uvx|python) ", "", command))
    program = [sys.executable, words[0]] if words[0].endswith(".py") else [bench.beside_trainer(words[0]), words[1]]
    assert flags(command) <= set(re.findall(r"--[\w-]+", bench.run(*program, "--help")))


def of_serving(bench: Bench, command: str) -> None:
    """What waits for a model to answer is run in tests/test_serve.py: here its flags are compared."""
    assert flags(command) <= set(re.findall(r"--[\w-]+", bench.commands.run("serve.py", "--help").stdout))


def of_make(bench: Bench, command: str) -> None:
    """The target exists, and what it would run is shell: running it is what .ci/run does."""
    bench.run("make", "--dry-run", *shlex.split(command)[1:])


def elsewhere(_: Bench, __: str) -> None:
    """Run by other tests, or by nothing that can run here: see HOW."""


HOW: dict[str, Callable[[Bench, str], None]] = {
    r"(check|estimate|submit|status|logs)\.py .*": ours,
    r"hf (?!endpoints ).*": of_hf,
    r"hf endpoints .*": flags_of_hf,  # an account that pays by the hour
    r"(mlx_lm\.\w+|pip install mlx-lm).*": elsewhere,  # Apple's own processors
    r"serve\.py (?!JOB|GROUP)\S+( --max-usd \S+)?": ours,
    r"serve\.py ((JOB|GROUP).*|.* --where local.*)": of_serving,
    r"make .*": of_make,
    r"uv run templates/\w+\.py .*": by_its_help,  # run in tests/test_training.py, tests/test_export.py
    r"python benchmarks/fit_memory\.py": elsewhere,  # run in tests/test_memory.py
    r"python benchmarks/\w+\.py .*": by_its_help,
    r"uvx trackio show .*": by_its_help,
    r"(py -m )?pip install (uv|huggingface_hub)": elsewhere,  # how these tests were set up: tests/requirements*.txt
    r"wsl --install": elsewhere,  # Windows' own
    # Installing the skill, with the assistants' own programs: tests/test_installed.py.
    r"(/plugin|\$skill-installer|npx|npm|claude|codex|opencode|git|mkdir|cp|mv|rm|New-Item|Copy-Item|tar) .*": elsewhere,
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[:70])
def test_a_command_of_a_document_runs(bench, command):
    ways = [how for pattern, how in HOW.items() if re.fullmatch(pattern, command)]
    assert len(ways) == 1, f"no way to run {command!r}: add its kind to HOW, or mark a block that is no shell as ```text"
    ways[0](bench, command)


def test_commands_are_found_where_they_stand():
    text = "```bash\nuvx hf auth login  # first\nhf jobs ps \\\n    --all\n```\nThen `status.py JOB --watch`, not `status`.\n"
    assert [*commands_in(text)] == ["uvx hf auth login", "hf jobs ps      --all", "status.py JOB --watch"]
    assert filled("uv run SKILL/scripts/logs.py JOB --tail N") == "logs.py JOB --tail 9"
    assert len(COMMANDS) > 20


@pytest.mark.slow
def test_uvx_gets_hf():
    """`uvx hf` takes the package of that name from the registry."""
    done = subprocess.run([UV, "tool", "run", "hf", "--help"], capture_output=True, text=True)
    assert "auth" in done.stdout, done.stderr
