"""The arguments of a job's script, written so that each local file reaches the job, and nothing else is taken for one.

The client uploads an argument where the word itself is the name of a file here, and rewrites it to /data/NAME. So a
file that a setting names is a word of its own, `--dataset rows.jsonl`, and any other value stands with its flag,
`--prompt-column=question`, also where a file here is called `question`.
"""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..errors import FAILED, USAGE, Problem, UserError
from ..training.files import sha256_of

# Settings whose value is a name and never a file of this machine: one that happens to be called so stays here.
NAMES = {
    "adapter", "adapter_revision", "answer_format", "backend", "base_model", "base_model_revision", "chosen_column",
    "completion_column", "dataset_config", "dataset_revision", "dataset_split", "engine", "eval_dataset_config",
    "eval_dataset_revision", "eval_dataset_split", "gradient_checkpointing", "host", "judge_model", "judge_url", "label_column",
    "loss", "model", "models", "output_repo", "prompt_column", "quantizations", "rejected_column", "reward", "run_name",
    "save_local", "target_modules", "trackio_space",
}  # fmt: skip
FOLDERS = ("dataset", "eval_dataset", "adapter")  # settings that may name a folder here, which no job can see
CLIENT_WANTS = (".py", ".sh", ".yaml", ".yml", ".toml")  # the client refuses a word with such an end that is no file


def render(settings: Any, arguments: list[str]) -> list[str]:
    """The settings as flags in one canonical form: what differs from its default, and what was given all the same."""
    words: list[str] = []
    for item in fields(settings):
        flag, value = "--" + item.name.replace("_", "-"), getattr(settings, item.name)
        if value == item.default and not given(flag, arguments):
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif is_file(item.name, value):
            words += [flag, value]
        else:
            words.append(f"{flag}={value}")
    return words


def expanded(settings: Any) -> Any:
    """The settings with `~` replaced in each that names a file here: the client does not know it."""
    values = {item.name: getattr(settings, item.name) for item in fields(settings)}
    return replace(settings, **{name: os.path.expanduser(value) for name, value in values.items() if is_file(name, value)})


def is_file(name: str, value: Any) -> bool:
    """Whether a setting's value is a file on this machine, which the script is to read."""
    if name == "grader" and not str(value).endswith(".py"):  # a built-in one
        return False
    return isinstance(value, str) and name not in NAMES and os.path.isfile(os.path.expanduser(value))


def given(flag: str, arguments: list[str]) -> bool:
    flags = (flag, flag.replace("--", "--no-", 1))
    return any(argument in flags or argument.startswith(flag + "=") for argument in arguments)


def local_files(words: list[str]) -> dict[str, str]:
    """Each argument that is a file here, which the job is sent, with the hash of its content."""
    return {word: sha256_of(word) for word in words if os.path.isfile(word)}


def require_visible(settings: Any) -> None:
    """Raises UserError where a setting names a folder here, or what is no ordinary file: a job is sent files alone."""
    for name in FOLDERS:
        value = getattr(settings, name, "")
        path = Path(os.path.expanduser(value))
        if not value or is_file(name, value) or not path.exists():
            continue
        rows, flag = name.endswith("dataset"), "--" + name.replace("_", "-")
        kind = "--repo-type dataset " if rows else ""
        fix = f"Upload it: hf upload {kind}YOU/NAME {value}. Then pass {flag} YOU/NAME."
        if rows:
            fix = f"Join its rows in one .jsonl file and pass that. Or upload it: {fix.partition(': ')[2]}"
        what = "a folder" if path.is_dir() else "no ordinary file"
        raise UserError("not_a_file", f"{flag} {value} is {what} on this machine, which a job cannot see.", fix)


def require_clear(words: list[str]) -> list[Problem]:
    """What is in doubt about the arguments of a script that has no settings, and so stay as they are.

    Raises UserError where a word names a file or a folder of this machine in a way in which the job would not see it.
    """
    for word in words:
        flag, _, value = word.partition("=")
        if word.startswith("-") and value and Path(os.path.expanduser(value)).exists():
            raise UserError(
                "file_not_sent",
                f"{word}: the job would not see {value}, since a file is sent only where it is an argument of its own.",
                f"Write it with a space: {flag} {value}",
                USAGE,
            )
        if word.startswith((".", "/", "~")) and Path(word).is_dir():
            raise UserError(
                "not_a_file",
                f"{word} is a folder on this machine, which a job cannot see.",
                f"Upload it: hf upload YOU/NAME {word}. Then name that instead.",
            )
    return [
        Problem(
            "sent_as_file",
            "warning",
            f"{word} is the name of a file here, so the job is sent that file instead of the word.",
            f"Right if the file is meant. If not: run this from a folder without a file {word}.",
        )
        for word in words
        if os.path.isfile(word) and not os.path.dirname(word) and not Path(word).suffix
    ]


def require_sendable(words: list[str]) -> None:
    """Raises UserError on what the client would refuse after the approval: a word that looks like a file and is none."""
    for word in words:
        if Path(word).suffix in CLIENT_WANTS and not word.startswith(("http://", "https://")) and not Path(word).is_file():
            raise UserError(
                "missing_file",
                f"There is no file {word} here, and the Hub's client takes an argument with this ending for a file.",
                "Correct its path, or choose a value with another end.",
                FAILED,
            )
