# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "huggingface_hub==2.4.0", "transformers==5.23.0", "tokenizers==0.23.3", "typer==0.29.2", "rich==15.0.0",
#     "psutil==7.2.2", "starlette==1.10.0", "uvicorn==0.54.0", "lz4==4.4.5", "hf-xet==1.8.0", "pyyaml==6.0.3",
#     "pyarrow==26.0.1",
# ]
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# ///
"""Hand the prompts of evals.json to an assistant, and grade what it did on a test Hub."""

from __future__ import annotations

import hashlib
import json as jsonlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

EVALS = Path(__file__).resolve().parent
ROOT = EVALS.parent
sys.path[:0] = [str(ROOT / name) for name in ("evals", "tests", "scripts", "demo")]

import psutil  # noqa: E402
import typer  # noqa: E402
from grade import Evidence, Turn, grade  # noqa: E402
from hub import Hub  # noqa: E402
from rich.markup import escape  # noqa: E402
from state import TOKEN, Library, change, fill, install, lead  # noqa: E402
from unsloth_jobs.errors import FAILED, USAGE, UserError  # noqa: E402
from unsloth_jobs.output import application, ends_clearly, people, print_json, table  # noqa: E402

CASES: dict[str, dict[str, Any]] = {
    case["id"]: case for case in jsonlib.loads((EVALS / "evals.json").read_text("utf-8"))["evals"]
}
STILL_WAITING_S = 3600.0  # a job that an assistant starts waits for a machine until the eval ends
TRANSCRIPT = "This conversation goes on; answer its last message.\n\n"

app = application("Grade an assistant that uses this skill.")


@dataclass(frozen=True)
class Assistant:
    """A program that answers a prompt, given as its last argument or on stdin. continued: the one for later prompts."""

    command: list[str]
    continued: list[str] | None = None
    stdin: bool = False
    timeout_s: float = 600.0

    def ask(self, said: list[tuple[str, str]], prompt: str, env: dict[str, str], cwd: Path) -> tuple[str, int | None]:
        """Its answer, and its exit code or None where it took too long. said: the prompts and answers before this one."""
        command = self.continued if said and self.continued else self.command
        if said and not self.continued:
            prompt = (
                TRANSCRIPT + "".join(f"[user]\n{one}\n\n[assistant]\n{other}\n\n" for one, other in said) + f"[user]\n{prompt}"
            )
        process = subprocess.Popen(
            command if self.stdin else [*command, prompt],
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE if self.stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        try:
            answer, _ = process.communicate(prompt if self.stdin else None, self.timeout_s)
            return answer, process.returncode
        except subprocess.TimeoutExpired:
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                one.kill()
            return process.communicate()[0], None


@dataclass(frozen=True)
class Result:
    """What became of an eval. failures: sentences of grade.grade; answers: the assistant's, by prompt."""

    id: str
    passed: bool
    failures: list[str]
    seconds: float
    answers: list[str]


@dataclass(frozen=True)
class Desk:
    """The user's machine: a home with the skill in it, a project, and the environment of a shell there."""

    home: Path
    project: Path
    skills: list[Path]
    env: dict[str, str]

    @classmethod
    def set_up(cls, root: Path, hub: Hub, case: dict[str, Any], skill: Path, python: str | None) -> Desk:
        home, project = root / "home", root / "home" / "project"
        project.mkdir(parents=True)
        for name in case["files"]:
            shutil.copy(EVALS.parent / name, project)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        kept["PATH"] = os.pathsep.join(
            [*([str(uv_for(python, root))] if python else []), str(Path(sys.executable).parent), kept["PATH"]]
        )
        user = Path.home()  # whose packages uv need not fetch again
        uv = {"UV_CACHE_DIR": str(user / ".cache/uv"), "UV_PYTHON_INSTALL_DIR": str(user / ".local/share/uv/python")}
        own = {"HOME": str(home), "USERPROFILE": str(home), "PWD": str(project)}
        return cls(home, project, install(skill, home), uv | kept | own | hub.env(token=TOKEN))

    def submit(self, run: dict[str, Any]) -> str:
        """Submit a run as its user did, and return its job's id."""
        skill = self.skills[0]
        words = ["uv", "run", str(skill / "scripts/submit.py"), str(skill / "templates/sft.py")]
        done = subprocess.run(
            [*words, *run["options"], "--yes", "--json", "--", *run["arguments"]],
            cwd=self.project, env=self.env, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"The run {run['name']} could not be submitted: {done.stderr}")
        return jsonlib.loads(done.stdout)["job_id"]

    def plans(self, since: float) -> dict[str, dict[str, Any]]:
        """The plans that submit.py has shown here since then, by id."""
        shown = Path(self.env["HF_HOME"], "unsloth-jobs", "plans").glob("*.json")
        return {path.stem: jsonlib.loads(path.read_text("utf-8")) for path in shown if path.stat().st_mtime > since}

    def changed(self, before: dict[Path, str], after: dict[Path, str]) -> list[str]:
        """The files of before that are no more what they were, and new ones in the skill."""
        new = (path for path in after.keys() - before.keys() if self.project not in path.parents)
        changed = (path for path, digest in before.items() if after.get(path) != digest)
        return [str(path.relative_to(self.home)) for path in (*changed, *new)]

    def files(self) -> dict[Path, str]:
        """Digests of the skill's files and the project's."""
        found = (path for folder in (*self.skills, self.project) for path in folder.rglob("*") if path.is_file())
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in found if "__pycache__" not in path.parts}


def uv_for(python: str, root: Path) -> Path:
    """A folder with a `uv` whose `uv run SCRIPT` is this interpreter, which has what the scripts need."""
    folder = root / "bin"
    folder.mkdir()
    (folder / "uv").write_text(f'#!/bin/sh\nshift\nexec {shlex.quote(python)} "$@"\n', "utf-8")
    (folder / "uv").chmod(0o755)
    return folder


def play(case: dict[str, Any], assistant: Assistant, library: Library, skill: Path, python: str | None = None) -> Result:
    """One eval, from its state to its grade, in folders that are gone afterwards."""
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
        Hub(Path(scratch, "hub"), execute_jobs=False, scheduling=STILL_WAITING_S, quiet_s=0.5) as hub,
    ):
        fill(hub, case["state"], library)
        desk = Desk.set_up(Path(scratch), hub, case, skill, python)
        runs = {}
        for run in case["state"].get("runs", ()):
            runs[run["name"]] = desk.submit(run)
            lead(hub, runs[run["name"]], run)
        before, began, turns, said = desk.files(), time.time(), [], []
        for step in [case, *case.get("turns", ())]:
            change(hub, step.get("state", {}))
            requests, jobs = len(hub.journal), {job.id for job in hub.jobs}
            answer, code = assistant.ask(said, step["prompt"], desk.env, desk.project)
            said.append((step["prompt"], answer))
            turns.append(
                Turn(
                    step.get("approves"),
                    answer,
                    code,
                    tuple(hub.journal)[requests:],
                    tuple(job for job in hub.jobs if job.id not in jobs),
                    desk.plans(began),
                )
            )
        after = desk.files()
        evidence = Evidence(
            tuple(turns),
            {name: hub.jobs.get(job_id).stage for name, job_id in runs.items()},
            tuple(desk.changed(before, after)),
            tuple(leaks(hub, [answer for _, answer in said], after)),
        )
        failures = grade(with_ids(case, runs), evidence)
    return Result(case["id"], not failures, failures, round(time.monotonic() - started, 1), [answer for _, answer in said])


def with_ids(case: dict[str, Any], runs: dict[str, str]) -> dict[str, Any]:
    """The eval with the job ids of its earlier runs where its checks say {NAME}."""
    text = jsonlib.dumps(case)
    for name, job_id in runs.items():
        text = text.replace(f"{{{name}}}", job_id)
    return jsonlib.loads(text)


def leaks(hub: Hub, answers: Iterable[str], files: Iterable[Path]) -> Iterable[str]:
    """Where the user's token stands and should not."""
    yield from hub.leaks(TOKEN)
    yield from (f"answer {number}" for number, answer in enumerate(answers, 1) if TOKEN in answer)
    yield from (path.name for path in files if TOKEN.encode() in path.read_bytes())


def show(results: list[Result]) -> None:
    rows = table("eval", "result", "seconds")
    for one in results:
        rows.add_row(one.id, "[green]passed[/]" if one.passed else "[red]failed[/]", f"{one.seconds:.0f}")
    people.print(rows)
    for one in results:
        for failure in one.failures:
            people.print(f"[red]{one.id}[/]: {escape(failure)}")
    people.print(f"\n{sum(one.passed for one in results)} of {len(results)} passed")


@app.command(epilog="Exit codes: 0 all passed; 1 one failed; 2 usage.")
@ends_clearly
def run(
    assistant: Annotated[str, typer.Option(help="command that answers the prompt which follows as its last argument")],
    continued: Annotated[
        str, typer.Option("--continue", help="command that answers a later prompt of the same conversation")
    ] = None,
    stdin: Annotated[bool, typer.Option("--stdin", help="the prompt goes to the command's stdin")] = False,
    only: Annotated[list[str], typer.Option(metavar="ID", help="only this eval; may be repeated")] = None,
    skill: Annotated[Path, typer.Option(help="folder of the skill that is installed")] = ROOT,
    python: Annotated[str, typer.Option(help="interpreter for `uv run SCRIPT`, in place of a new environment")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="seconds for each answer")] = 600.0,
    jobs: Annotated[int, typer.Option(min=1, help="evals at once")] = 2,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout, answers included")] = False,
) -> None:
    """Hand the prompts of evals.json to an assistant, and grade what it did on a test Hub.

    Each eval has a Hub on loopback, a home folder with the skill in ~/.agents/skills and ~/.claude/skills, and a
    project as the working directory; no job trains. Graded are the Hub's journal, its jobs and the plans that were
    shown: what must have happened, what must not, and that nothing was paid without a yes.

    The assistant's login comes from the environment (ANTHROPIC_API_KEY, OPENAI_API_KEY ...), since its home is new.
    Without --continue, a later prompt carries the conversation so far. The assistant must be let run commands:

    \b
    run.py --assistant 'claude -p --allowedTools=Bash,Read,Skill' --continue 'claude -pc --allowedTools=Bash,Read,Skill'
    run.py --assistant 'codex exec --skip-git-repo-check --sandbox danger-full-access'
    run.py --assistant 'opencode run' --continue 'opencode run --continue'
    run.py --assistant "python $PWD/evals/scripted.py" --only quick-start
    """
    if unknown := [name for name in only or () if name not in CASES]:
        raise UserError("unknown_eval", f"There is no eval {', '.join(unknown)}.", f"One of: {', '.join(CASES)}", USAGE)
    program = Assistant(shlex.split(assistant), continued and shlex.split(continued), stdin, timeout)
    if missing := [words[0] for words in (program.command, program.continued or program.command) if not shutil.which(words[0])]:
        raise UserError("no_assistant", f"There is no program {missing[0]}.", "Install it, or name it by its path.", USAGE)
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(jobs) as pool:
        library = Library(Path(scratch))
        cases = [CASES[name] for name in only or CASES]
        results = list(pool.map(lambda case: play(case, program, library, skill.resolve(), python), cases))
    if json:
        print_json({"ok": all(one.passed for one in results), "results": [asdict(one) for one in results]})
    else:
        show(results)
    if not all(one.passed for one in results):
        raise typer.Exit(FAILED)


if __name__ == "__main__":
    app()
