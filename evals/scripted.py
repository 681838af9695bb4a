"""An assistant without a model: it takes each command from SKILL.md and follows it to the letter.

It understands the prompts of evals.json and no others. What it runs is what SKILL.md says, in that order, with the
ids, flags and figures of the user and of the commands' own answers: where SKILL.md is wrong, so is what it does.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ID = r"([A-Za-z0-9][\w.-]*/[\w.-]*\w)"
COMMANDS = re.compile(r"\w+\.py$")


class Skill:
    """SKILL.md and the commands in it, or in the references that it names."""

    def __init__(self, folder: Path):
        self.folder, self.text = folder, (folder / "SKILL.md").read_text("utf-8")
        named = dict.fromkeys(re.findall(r"`(references/[\w-]+\.md)`", self.text))
        self.all = "\n".join([self.text, *((folder / name).read_text("utf-8") for name in named)])

    def command(self, *parts: str, **values: Any) -> list[str]:
        """The first command that holds these parts, with its capital words replaced by values."""
        spans = re.findall(r"`([^`\n]+)`|(?m:^(uv run .+)$)", self.all)
        found = [span or line for span, line in spans if all(part in (span or line) for part in parts)]
        if not found:
            sys.exit(f"SKILL.md has no command with {' and '.join(parts)}")
        words = found[0].split()
        if COMMANDS.match(words[0]):  # a second mention, without the way to it
            words = ["uv", "run", f"SKILL/scripts/{words[0]}", *words[1:]]
        words = [str(self.folder / word.removeprefix("SKILL/")) if word.startswith("SKILL/") else word for word in words]
        return [str(values.get(word, word)) for word in words]

    def flag(self, when: str) -> tuple[str, str]:
        """The training flag of the table's row that holds these words, and the row's words."""
        return re.search(rf"(?m)^\| `(--[a-z-]+)[^`]*`[^|]*\| ([^|]*{when}[^|]*)\|", self.text).groups()

    @property
    def default_model(self) -> str:
        return re.search(rf"No model named: `{ID}`", self.text)[1]


def run(words: list[str]) -> tuple[int, dict[str, Any]]:
    """A command's exit code and JSON object; --json stands before the arguments that follow `--`."""
    at = words.index("--") if "--" in words else len(words)
    words = [*words[:at], "--json", *words[at:]]
    print(f"$ {shlex.join(words)}")
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if not done.stdout.startswith("{"):
        sys.exit(f"Exit code {done.returncode}: {done.stderr}")
    said = json.loads(done.stdout)
    for problem in said.get("problems", ()):
        print(f"{problem['severity']} {problem['code']}: {problem['message']} {problem['fix']}")
    return done.returncode, said


def changed(command: list[str], flag: str, value: str) -> list[str]:
    """The command with another value of a flag, or with the flag at its end."""
    words = [word for word in command if not word.startswith(f"{flag}=")]
    if flag in words:
        at = words.index(flag)
        return [*words[: at + 1], value, *words[at + 2 :]]
    return [*words, flag, value]


def value_of(command: list[str], flag: str) -> str:
    """What a flag is set to, written as one word or as two."""
    at = next(at for at, word in enumerate(command) if word.partition("=")[0] == flag)
    return command[at].partition("=")[2] or command[at + 1]


# ---- what the user says


@dataclass
class Wish:
    """A training as the user's words name it, the later ones over the earlier; limit: dollars, where there is one."""

    model: str
    dataset: str = ""
    limit: float | None = None
    flags: list[str] = field(default_factory=list)
    runs: int = 1
    rewarded: bool = False

    def hear(self, words: str) -> None:
        if found := re.search(rf"\b(?:[Tt]rain|tune|[Tt]each|take|best for) {ID}", words):
            self.model = found[1]
        if found := re.search(rf"\b(?:on|in|meant) (?:{ID}|(\w+\.csv))", words):
            self.dataset = found[1] or found[2]
        self.rewarded |= "reward" in words
        if found := re.search(r"(\d+) cents", words):
            self.limit = int(found[1]) / 100
        if found := re.search(r"at most \$(\d+)", words):
            self.limit = float(found[1])
        if re.search(r"learning rate.* three\b", words):
            self.runs = 3


def conversation(prompt: str) -> tuple[list[str], list[str]]:
    """The user's messages and the answers to them."""
    parts = re.split(r"(?m)^\[(user|assistant)\]\n", prompt)
    if len(parts) == 1:
        return [prompt], []
    turns = list(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))
    return [text for who, text in turns if who == "user"], [text for who, text in turns if who == "assistant"]


# ---- what SKILL.md says to do


def train(skill: Skill, wish: Wish) -> None:
    """Check, estimate and plan, as far as the answers let it."""
    data, method = ("PROMPTS", "grpo.py") if wish.rewarded else ("DATASET", "")
    named = {"MODEL": wish.model, data: wish.dataset}
    code, found = run(skill.command("check.py", "MODEL", method, **named) + wish.flags)
    if code:
        return print("That has to be mended first.")
    length, _ = skill.flag("answers are cut")
    longer = [match[1] for one in found["problems"] if (match := re.search(rf"answers whole: {length} (\d+)", one["fix"]))]
    if longer and length not in wish.flags:
        return print(f"Shall I set {length} {longer[0]}?")
    code, found = run(skill.command("estimate.py", "MODEL", method, **named) + wish.flags)
    best = found["recommended"]
    if code or (wish.limit and best["max_usd"] * wish.runs > wish.limit):
        return print(f"It can cost ${best['max_usd'] if best else '?'}, more than you have. A smaller model, or fewer rows?")
    values = {"F": best["flavor"], "T": f"{best['timeout_s'] // 60}m", "N": best["max_usd"]}
    if wish.runs > 1:
        return plan(skill.command("submit.py", "--vary learning-rate", **values | named | {"N": wish.limit}) + wish.flags)
    plan(skill.command("submit.py", method or "sft.py", **values, **named) + wish.flags)


def plan(command: list[str]) -> None:
    code, shown = run(command)
    if code == 3 and "plan_id" in shown:
        print(f"It costs at most ${shown['plan']['max_usd']}. Shall I start it?")
        print(f"planned {shown['plan_id']}: {shlex.join(command)}")


def start(skill: Skill, answers: list[str]) -> Any:
    """The plan that was shown last, as SKILL.md says to approve it; once more where the answer was lost."""
    plan_id, command = re.findall(r"(?m)^planned ([\w-]+): (.+)$", "\n".join(answers))[-1]
    words, flag = shlex.split(command), re.search(r"`(--\S+) PLAN_ID` before `--`", skill.text)[1]
    at = words.index("--") if "--" in words else len(words)
    approved = [*words[:at], flag, plan_id, *words[at:]]
    code, job = run(approved)
    if code == 4 and "repeat the very same command" in skill.text:
        code, job = run(approved)
    if code == 0 and "group_id" in job:
        print(*(f"{one['job_id']} {one['url']} {one['model_url']}" for one in job["jobs"]), job["max_usd"], sep="\n")
        return run(skill.command("status.py", "JOB", JOB=job["group_id"]))
    if code == 0:
        print(job["job_id"], job["url"], job.get("dashboard_url"), job.get("model_url"), job["max_usd"])
        run(skill.command("status.py", "JOB", JOB=job["job_id"]))


def submitted(skill: Skill, *stages: str) -> dict[str, Any]:
    """The newest job of a stage."""
    _, found = run(skill.command("status.py", "--all"))
    return next(job for job in found["jobs"] if not stages or job["stage"] in stages)


def mend(skill: Skill, words: str) -> None:
    """Plan a failed run again, with the one change that its cause and the user's words ask for."""
    job = submitted(skill, "ERROR")
    command = shlex.split(job["command"])
    match job["diagnosis"]["code"]:
        case "timeout":
            command = shlex.split(job["next"][job["next"].index("uv run") :])
        case "push_denied":
            command = changed(command, "--output-repo", re.search(ID, words)[1])
        case "out_of_vram":
            command = on_a_larger_gpu(skill, command)
    plan(command)


def on_a_larger_gpu(skill: Skill, command: list[str]) -> list[str]:
    """The same run where it is cheapest among the GPUs with more memory."""
    at = command.index("--")
    flavor, model, dataset = (value_of(command, flag) for flag in ("--flavor", "--base-model", "--dataset"))
    _, found = run(skill.command("estimate.py", "MODEL", MODEL=model, DATASET=dataset) + command[at + 1 :])
    memory = {one["flavor"]: one["vram_gb"] for one in found["flavors"]}
    larger = next(name for one in found["flavors"] if one["fits"] and memory[name := one["flavor"]] > memory[flavor])
    return [*changed(command[:at], "--flavor", larger), *command[at:]]


def compare(skill: Skill, words: str) -> None:
    """What the run itself has measured; a plan to compare both where it has not."""
    job = submitted(skill, "COMPLETED")
    _, found = run(skill.command("status.py", "JOB", JOB=job["job_id"]))
    if graded := [line for line in found["worth"] if line.startswith("right on")]:
        return print(graded[0])
    adapter = "/".join(job["model_url"].split("/")[-2:])
    test = re.search(rf"\bon {ID}", words)[1]
    plan(skill.command("submit.py", "evaluate.py", **{"OWNER/NAME": adapter, "test.jsonl": test}))


def describe(job: dict[str, Any]) -> None:
    print(job["stage"], job["progress"], f"{job['eta_s']} s left, ${job['spent_usd']} of ${job['max_usd']}")
    if job["diagnosis"]:
        print(job["diagnosis"]["message"], job["next"])


def answer(skill: Skill, said: list[str], answers: list[str]) -> None:
    last = said[-1].lower()
    if re.match(r"yes, (start|go on|do)", last):
        return start(skill, answers)
    if last.startswith("no,"):
        return print("Nothing was started.")
    if last.startswith("stop"):
        command = skill.command("status.py", "--cancel", JOB=submitted(skill, "RUNNING")["job_id"])
        return describe(run(command)[1])
    if "phone" in last or "laptop" in last:
        adapter = "/".join(submitted(skill, "COMPLETED")["model_url"].split("/")[-2:])
        return plan(skill.command("submit.py", "export.py", **{"OWNER/NAME": adapter}))
    if "chat with" in last:
        adapter = "/".join(submitted(skill, "COMPLETED")["model_url"].split("/")[-2:])
        return plan(skill.command("uv run", "serve.py", "--max-usd", MODEL=adapter))
    if "better" in last:
        return compare(skill, said[-1])
    if re.search(r"how is|how much|stopped|failed|happened", last):
        return describe(submitted(skill))
    if re.search(r"stopped|failed|happened", said[0].lower()):
        return mend(skill, said[-1])
    wish = Wish(skill.default_model)
    for words in said:
        wish.hear(words)
    if "raise the length" in last:
        wish.flags += re.search(r"Shall I set (\S+) (\d+)", answers[-1]).groups()
    train(skill, wish)


if __name__ == "__main__":
    prompt = sys.argv[1] if len(sys.argv) > 1 else sys.stdin.read()
    answer(Skill(Path.home() / ".agents/skills/unsloth-jobs"), *conversation(prompt))
