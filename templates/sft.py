# /// script
# requires-python = ">=3.11,<3.15"
# dependencies = [
#     "unsloth==2026.10.9",
#     "unsloth_zoo==2026.10.9",
#     "torch==2.10.0",
#     "transformers==5.17.0",
#     "trl==1.15.0",
#     "peft==0.21.2",
#     "datasets==4.8.5",
#     "accelerate==1.15.0",
#     "bitsandbytes==0.50.2",
#     "trackio==0.43.0",
#     "huggingface_hub==1.33.0",
#     "matplotlib==3.11.2",
#     "numpy==2.4.6",
#     "psutil==7.2.2",
#     "httpx==0.28.1",
#     # torch compiles for a processor with it, and names it only for newer Pythons.
#     "setuptools==84.2.1",
# ]
#
# [tool.uv]
# # Versions newer than this day do not exist for this script: it resolves next year as it does now.
# exclude-newer = "2026-11-20T00:00:00Z"
# # unsloth asks for a certifi that some registries do not have yet; any release of it will do.
# override-dependencies = ["certifi"]
# ///
r"""Fine-tune a small language model on chat data: LoRA with Unsloth, on a rented GPU or on this machine.

On Hugging Face Jobs, straight from this file or from its URL:

    hf jobs uv run --flavor l4x1 --timeout 4h --secrets HF_TOKEN templates/sft.py -- \
        --base-model LiquidAI/LFM2.5-1.2B-Instruct --dataset mlabonne/FineTome-100k \
        --output-repo you/lfm-finetuned

Here, on whatever processor there is:

    uv run templates/sft.py --base-model ./model --dataset ./rows.jsonl --save-local ./tuned

Each thing that matters is printed as one line `EVENT {"event": NAME, ...}`; NAME is one of plan, data, masks,
coverage, batching, progress, eval, checkpoint, early_stopped, sample, pushed, warning, done, failed. Exit code 0: a tuned model is where
the `done` event says; 1: the `failed` event says why and what to do.

torch is the CUDA 12.8 build because it runs on older drivers too: a CUDA 13 build on an older driver sees no GPU.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import csv
import functools
import gc
import hashlib
import heapq
import html
import inspect
import io
import itertools
import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

# ---------------------------------------------------------------------------------------------------------------
# Settings: fill them in here, or pass the flag of the same name.


def setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    # Model
    base_model: str = setting("LiquidAI/LFM2.5-1.2B-Instruct", "model to tune: Hub id or local folder")
    base_model_revision: str = setting("", "commit or branch of the model (default: main)")
    load_in_16bit: bool = setting(False, "16-bit LoRA instead of 4-bit QLoRA: more memory, no quantisation error")
    backend: str = setting("unsloth", "unsloth; trl: without Unsloth, slower, for a model that it does not take")
    # Data
    dataset: str = setting("", "rows to learn (needed): Hub id, or local .jsonl .json .csv .tsv .parquet .txt")
    dataset_config: str = setting("", "configuration of the data set (default: `default`, or the only one)")
    dataset_split: str = setting("", "split to train on (default: `train`, or the only one)")
    dataset_revision: str = setting("", "commit or branch of the data set (default: main)")
    prompt_column: str = setting("", "column that holds the question, where its name is not recognised")
    completion_column: str = setting("", "column that holds the answer, where its name is not recognised")
    num_samples: int = setting(0, "use only the first N rows (0: all)")
    eval_split: float = setting(0.1, "share of the rows held out for evaluation (0: no evaluation)")
    max_eval_rows: int = setting(200, "hold out at most N rows: evaluation is paid for too, and the rest is trained on")
    # Training
    num_epochs: float = setting(1.0, "passes over the training rows")
    max_steps: int = setting(0, "stop after N optimizer steps, whatever --num-epochs says (0: no limit)")
    batch_size: int = setting(4, "rows of full length in one forward pass, at most")
    gradient_accumulation: int = setting(4, "times --batch-size: the effective batch size, in rows")
    learning_rate: float = setting(2e-4, "peak learning rate")
    max_seq_length: int = setting(2048, "tokens per row; what is longer is cut, and said")
    packing: bool = setting(True, "sequence packing, rows kept apart; rows alone where a model cannot")
    gradient_checkpointing: str = setting("auto", "off (fastest), offload (least memory); auto: off where the GPU has the room")
    lora_r: int = setting(16, "rank of the LoRA matrices")
    lora_alpha: int = setting(32, "LoRA scale; twice the rank is usual")
    target_modules: str = setting("auto", "modules that get an adapter, by comma; auto: each linear layer of the decoder")
    min_coverage: float = setting(0.9, "stop when the adapter reaches less than this share of what was asked for")
    save_steps: float = setting(0.1, "checkpoint every N steps, or every share of the run when under 1")
    resume: bool = setting(False, "go on from the newest checkpoint in --save-local or --output-repo, where there is one")
    early_stopping: int = setting(0, "stop once N evaluations brought no lower held-out loss; keep the best adapter (0: never)")
    seed: int = setting(3407, "seed of the split, the order of rows and the adapter's first values")
    # Results
    output_repo: str = setting("", "Hub repository that receives checkpoints, adapter and card; created where missing")
    public: bool = setting(False, "create the repository public instead of private")
    card_samples: bool = setting(True, "quote held-out questions and answers in the model card")
    save_local: str = setting("unsloth-output", "folder for checkpoints and adapter on the machine that trains")
    merge_model: bool = setting(False, "also push the 16-bit merged model, to OUTPUT_REPO-merged")
    trackio_space: str = setting("", "Trackio Space for live curves, you/NAME (default: kept on the training machine)")
    run_name: str = setting("", "name of the run in Trackio (default: from model and data set)")


def parse_args(argv: list[str] | None = None) -> Settings:
    """Command-line flags over the defaults above. Raises SystemExit(2) on a flag or a value that is not one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for item in fields(Settings):
        flag, default = "--" + item.name.replace("_", "-"), item.default
        shown = f"{item.metadata['help']} [{default}]" if default not in ("", False) else item.metadata["help"]
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=shown)
        else:
            parser.add_argument(flag, type=type(default), default=default, metavar=type(default).__name__, help=shown)
    settings = Settings(**vars(parser.parse_args(argv)))
    for problem in setting_problems(settings):
        parser.error(problem)
    return settings


def setting_problems(settings: Settings) -> Iterable[str]:
    if not settings.dataset:
        yield "--dataset is needed: a Hub id such as mlabonne/FineTome-100k, or a local file"
    for name in ("batch_size", "gradient_accumulation", "max_seq_length", "max_eval_rows", "lora_r", "lora_alpha"):
        if getattr(settings, name) < 1:
            yield f"--{name.replace('_', '-')} must be at least 1, not {getattr(settings, name)}"
    for name in ("num_epochs", "learning_rate", "save_steps"):
        if not 0 < getattr(settings, name) < math.inf:
            yield f"--{name.replace('_', '-')} must be above 0, not {getattr(settings, name)}"
    for name in ("num_samples", "max_steps", "seed"):
        if getattr(settings, name) < 0:
            yield f"--{name.replace('_', '-')} must be at least 0, not {getattr(settings, name)}"
    if not 0 <= settings.min_coverage <= 1:
        yield f"--min-coverage is a share from 0 to 1, not {settings.min_coverage}"
    if not 0 <= settings.eval_split < 1:
        yield f"--eval-split is a share from 0 up to 1, not {settings.eval_split}"
    if settings.early_stopping < 0:
        yield f"--early-stopping is a number of evaluations, or 0, not {settings.early_stopping}"
    if settings.early_stopping and not settings.eval_split:
        yield "--early-stopping needs rows held out: --eval-split 0.1"
    if settings.backend not in ("unsloth", "trl"):
        yield f"--backend is unsloth or trl, not {settings.backend}"
    if settings.gradient_checkpointing not in ("auto", "off", "offload"):
        yield f"--gradient-checkpointing is auto, off or offload, not {settings.gradient_checkpointing}"
    if bool(settings.prompt_column) != bool(settings.completion_column):
        yield "--prompt-column and --completion-column go together"
    if settings.output_repo and not re.fullmatch(r"[\w.-]+/[\w.-]+", settings.output_repo, re.ASCII):
        yield f"--output-repo is OWNER/NAME, not {settings.output_repo!r}"


class Stop(Exception):
    """The run cannot go on, for a reason its user can mend: a code, what is wrong, and what to do about it."""

    def __init__(self, code: str, message: str, fix: str):
        super().__init__(message)
        self.code, self.message, self.fix = code, message, fix


# ---- secrets: these lines stand word for word in templates/sft.py, templates/export.py and scripts/unsloth_jobs/redaction.py

# Known by their shape alone, or (the named groups, which stay) by what stands before them. Each repetition is over one
# class of characters, so that no line, however long, takes more than time in proportion to its length.
SECRETS = re.compile(
    r"""
      (?P<hub> hf (?:_|%5[Ff]|\\u005[Ff]) | api_org_ ) (?: oauth_[A-Za-z0-9._~-]{12,} | [A-Za-z0-9]{12,} )   # Hugging Face
    | (?: (?<![A-Za-z0-9]) | (?<=[\d[]m) ) (?:                                       # not within a word, but after a colour
        sk-(?=[A-Za-z_-]{0,64}\d)[A-Za-z0-9_-]{20,}                                # OpenAI, Anthropic
      | gl(?:pat|dt|rt|ptt|cbt|soat|ft|imt|agent)-[A-Za-z0-9_-]{20,}               # GitLab
      | AIza[A-Za-z0-9_-]{35} | ya29\.[A-Za-z0-9_-]{20,}                           # Google
      | xox[a-z]-[A-Za-z0-9-]{10,} | xapp-[A-Za-z0-9-]{10,}                        # Slack
      | npm_[A-Za-z0-9]{36} | pypi-[A-Za-z0-9_-]{50,}
      | (?:gsk|r8)_[A-Za-z0-9]{20,} | nvapi-[A-Za-z0-9_-]{20,}                     # Groq, Replicate, NVIDIA
      | aGZf[A-Za-z0-9+/]{16,}                                                     # hf_ in base64
      )
    | wandb_v1_ [A-Za-z0-9_-]{20,}
    | (?P<wandb> (?i:wandb[^\n]{0,40}?(?:key|login|password|relogin)) [\W]{1,8} ) [0-9a-f]{40} (?![0-9a-f])
    | (?<![A-Z0-9]) (?:AKIA|ASIA) [A-Z0-9]{16,}                                     # AWS
    | (?P<aws> (?i:aws_?secret_?(?:access_?)?key|secretaccesskey) \W{1,6} ) [A-Za-z0-9/+=]{40}
    | (?P<signed> (?: X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)
        | (?:[?&;]|\\u0026)(?:sig|Signature|Policy|Key-Pair-Id) ) = ) [^\s&"'\\]+    # AWS, Google, Azure, CloudFront
    | gh[pousr]_ [A-Za-z0-9]{36,} | github_pat_ [A-Za-z0-9_]{22,}
    | (?P<header> (?i:authorization) \\?["']?\s{0,4}[:=]\s{0,4}\\?["']? (?i:bearer|basic|token)\s{1,4} ) [^\s"',}\\]+
    | (?P<bearer> (?i:bearer)\s{1,4} ) (?=[^\s\d]{0,64}\d) [A-Za-z0-9._~+/=-]{16,}
    | (?P<cookie> (?i:cookie) \\?["']?\s{0,4}[:=]\s{0,4}\\?["']? ) [\w.-]{1,64}=[^\n"'\\]+
    | (?P<key> (?i: api[_-]?key|access[_-]?key|secret[_-]?key|client[_-]?secret|(?:auth|access|refresh)[_-]?token|account_?key )
        \\?["']?\s{0,4}[:=]\s{0,4}\\?["']? ) (?=[^\s\d]{0,64}\d) [A-Za-z0-9._~+/=-]{16,}
    | (?P<password> (?i: passw(?:or)?d|passphrase ) \\?["']?\s{0,4}[:=]\s{0,4}\\?["']? ) [^\s"',;&}\\]{6,}
    | (?P<user> (?<![a-z0-9+.-]) [a-z][a-z0-9+.-]{1,20}://[^\s/:@]{0,64}: ) [^\s/"'\\]{1,256} (?=@)
    | eyJ[A-Za-z0-9_-]{10,} \. [A-Za-z0-9_-]{10,} \. [A-Za-z0-9_-]{10,}             # a signed web token
    """,
    re.VERBOSE,
)
SECRET_NAME = re.compile(r"(?i)(?:TOKEN|API_?KEY|_KEY|SECRET|_PASS|PASSWORD|PASSWD|PASSPHRASE)(?:_?\d{1,3})?$")
SHORTEST_SECRET = 8  # characters of a value that is cut out wherever it stands
# What steers a terminal. ECMA-48: control sequences, strings with their terminator (titles, links), escapes, then what is
# left of C0 and C1 but for tabs and line breaks; and the marks that turn the direction of the text that follows, and
# halves of characters, which cannot be printed.
CONTROL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
UNSHOWN = re.compile(CONTROL.pattern + r"|[\xad\u180e\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]")  # no width: may hide one


def own_secrets() -> list[str]:
    """The values of this process's secrets, the longest first: one may hold another."""
    values = {value for name, value in os.environ.items() if SECRET_NAME.search(name)}
    return sorted((value for value in values if len(value) >= SHORTEST_SECRET), key=len, reverse=True)


def redacted(text: str) -> str:
    """text without secrets: an error, a row or what a library prints may quote one, also with unshown characters in it."""
    found = starred(text)
    shown = UNSHOWN.sub("", found)
    return found if shown == found or starred(shown) == shown else starred(shown)


def starred(text: str) -> str:
    """text with *** in the place of each secret as it stands."""
    for value in own_secrets():
        text = text.replace(value, "hf_***" if value.startswith("hf_") else "***")
    return SECRETS.sub(lambda match: (match[match.lastgroup] if match.lastgroup else "") + "***", text)


# ---- end of the lines on secrets


SAID: dict[str, dict[str, Any]] = {}  # the newest event of each name: the model card tells what the log told


# JSON leaves these as they are, and some readers end a line there: an event is one line.
SEPARATORS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}


def emit(event: str, **values: Any) -> None:
    """One line for status, logs and people, without secrets."""
    SAID[event] = values
    line = json.dumps({"event": event, "time": round(time.time(), 1), **values}, ensure_ascii=False, default=str)
    print("EVENT " + redacted(line.translate(SEPARATORS)), flush=True)


def print_traceback() -> None:
    """The traceback of the exception at hand, none of whose lines can be taken for an event: it may quote a model's files."""
    print(redacted(traceback.format_exc()).replace("EVENT {", "EVENT: {"), file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------------
# Rows: whatever a data set calls its columns becomes {"messages", "tools"?}, {"prompt", "completion"} or {"text"}.

ROLES = {
    "system": "system", "developer": "developer",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "tool": "tool", "ipython": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("query", "response"),
    ("input", "output"),
)  # fmt: skip
PREFERENCE = {"chosen", "rejected"}
ONLY_TEXT = "only text can be learned"  # the end of each reason that a picture or a sound gives
MEDIA = {"image", "images", "audio", "audios", "video", "videos"}


class Format(NamedTuple):
    """How the rows of a data set are read: a name and, by role, the columns that are used."""

    name: str
    columns: dict[str, str]


def detect_format(
    columns: Iterable[str], prompt_column: str = "", completion_column: str = "", media: Iterable[str] = ()
) -> Format:
    """Find how to read a data set from its column names, and those known to hold media. Raises Stop where no reading is certain."""
    columns = list(columns)
    seen = [name for name in columns if name in MEDIA or name in media]
    if prompt_column:
        missing = [name for name in (prompt_column, completion_column) if name not in columns]
        if missing:
            raise Stop(
                "unknown_column",
                f"The data set has no column {missing[0]!r}; it has: {', '.join(columns)}.",
                "Name columns that exist with --prompt-column and --completion-column.",
            )
        seen = [name for name in (prompt_column, completion_column) if name in media]
    if seen:
        raise Stop(
            "unknown_columns",
            f"The rows hold pictures or sound ({', '.join(seen)}), and only text can be learned.",
            "Choose a data set of text. Where the text alone is enough, name its two columns with --prompt-column and "
            "--completion-column, or save a copy of the rows without pictures and sound.",
        )
    if prompt_column:
        return Format("prompt-completion", {"prompt": prompt_column, "completion": completion_column})
    tools = {"tools": "tools"} if "tools" in columns else {}
    for name in ("messages", "conversations", "conversation"):
        if name in columns:
            return Format("sharegpt" if name != "messages" else "messages", {"messages": name, **tools})
    if "instruction" in columns and ("output" in columns or "response" in columns):
        answer = "output" if "output" in columns else "response"
        extra = {"input": "input"} if "input" in columns else {}
        return Format("alpaca", {"instruction": "instruction", **extra, "output": answer})
    for prompt, completion in PAIRS:
        if prompt in columns and completion in columns:
            return Format("prompt-completion", {"prompt": prompt, "completion": completion})
    if "text" in columns:
        return Format("text", {"text": "text"})
    if set(columns) >= PREFERENCE:
        raise Stop(
            "preference_data",
            "The rows hold preferences (chosen, rejected), not answers to imitate.",
            "To imitate the chosen answers: --prompt-column prompt --completion-column chosen."
            if "prompt" in columns
            else "Choose a data set with messages, or with a question and an answer in each row.",
        )
    known = ["messages", "conversations", "instruction + output", *(" + ".join(pair) for pair in PAIRS), "text"]
    raise Stop(
        "unknown_columns",
        f"No known layout in the columns {', '.join(columns) or '(none)'}. Known: {', '.join(known)}.",
        naming_hint(columns),
    )


def naming_hint(columns: list[str]) -> str:
    if len(columns) == 1 and (delimiter := next((mark for mark in ";\t|" if mark in columns[0]), None)):
        return f"The file seems to be separated by {delimiter!r}: save it with commas."
    if len(columns) < 2:
        return "Each row needs a question and an answer: messages, or two columns."
    if {"role", "content"} <= {*columns} or {"from", "value"} <= {*columns}:
        return "Each turn stands alone. Put a conversation's turns into one row: " + ROW_EXAMPLE
    if any(map(reads_like_a_cell, columns)):
        return "The first line seems to be a row: put a line with the columns' names above it, such as question,answer."
    # Names come from the data set, and a fix is pasted into a shell.
    return "Name the two columns, such as: --prompt-column {} --completion-column {}".format(*map(shlex.quote, columns[:2]))


def reads_like_a_cell(name: str) -> bool:
    """Whether what should be a column's name is rather a sentence or a number, as in a table without names."""
    return len(name) > 40 or len(name.split()) > 3 or bool(re.search(r"[?!.]$|^[\d.,]+$", name))


def without_nulls(value: Any) -> Any:
    """Arrow fills each absent key with None, and chat templates take `defined` for `present`: drop them."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def plain_text(content: Any) -> str:
    """The text of a message. Raises ValueError on pictures or sound, which this template cannot learn."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise ValueError(f"a message's content is {type(content).__name__}, not text")
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = (part.get("type") or ", ".join(map(str, part))) if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"a message holds {kind}, and {ONLY_TEXT}")
    return "".join(part["text"] for part in content)


def normalise_message(message: Any) -> dict[str, Any]:
    """A turn as {"role", "content"} and what else chat templates read. Raises ValueError with the reason."""
    if not isinstance(message, Mapping):
        raise ValueError(f"a turn is {type(message).__name__}, not a message with a role")
    message = without_nulls(message)
    role = str(message.pop("role", message.pop("from", ""))).lower()
    if role not in ROLES:
        raise ValueError(f"unknown role {role!r}")
    content = plain_text(message.pop("content", message.pop("value", None)))
    kept = {
        key: message[key] for key in ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking") if message.get(key)
    }
    if "tool_calls" in kept:
        kept["tool_calls"] = with_calls(kept["tool_calls"], lambda name: name, parsed_arguments)
    if message.get("weight") == 0:  # as OpenAI marks an answer that is not to be learned; no template sees it
        kept["weight"] = 0
    return {"role": ROLES[role], "content": content, **kept}


def parsed_arguments(arguments: Any) -> Any:
    """The arguments of a tool call as a mapping, where they are the JSON text of one, as OpenAI writes them."""
    if not isinstance(arguments, str):
        return arguments
    try:
        mapping = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return arguments
    return mapping if isinstance(mapping, Mapping) else arguments


def with_calls(calls: Any, name: Callable[[Any], Any], arguments: Callable[[Any], Any]) -> Any:
    """Tool calls with their names and arguments replaced. What is no tool call stays."""

    def replaced(call: Any) -> Any:
        if not isinstance(call, Mapping):
            return call
        if isinstance(call.get("function"), Mapping):
            return {**call, "function": replaced(call["function"])}
        changed = {key: change(call[key]) for key, change in (("name", name), ("arguments", arguments)) if key in call}
        return {**call, **changed}

    return [replaced(call) for call in calls] if isinstance(calls, list) else calls


def parsed(value: Any) -> Any:
    """What some data sets keep as JSON in a string. Raises ValueError where it is none."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def normalise_row(row: Mapping[str, Any], layout: Format) -> dict[str, Any]:
    """One row as {"messages": [...], "tools"?: [...]}, {"prompt": str, "completion": str} or {"text": str}.

    Raises ValueError with the reason where the row does not have the shape its columns promise.
    """
    values = {role: from_cell(row.get(column)) for role, column in layout.columns.items()}
    if sum(map(characters, values.values())) > ROW_LIMIT:
        raise ValueError(f"longer than {ROW_LIMIT // 10**6} MB")
    if layout.name == "text":
        return {"text": cell_text(values["text"])}
    if layout.name == "alpaca":
        question = "\n\n".join(filter(None, (cell_text(values["instruction"]), cell_text(values.get("input")))))
        return {"prompt": question, "completion": cell_text(values["output"])}
    if layout.name == "prompt-completion":
        prompt, completion = values["prompt"], values["completion"]
        if is_turns(prompt) or is_turns(completion):
            return {"messages": [normalise_message(turn) for turn in joined(prompt, completion)]}
        return {"prompt": cell_text(prompt), "completion": cell_text(completion)}
    turns = parsed(values["messages"])
    if not isinstance(turns, list) or not turns:
        raise ValueError("the conversation is empty")
    tools = without_nulls(parsed(values.get("tools") or None))
    return {"messages": [normalise_message(turn) for turn in turns], **({"tools": tools} if tools else {})}


def characters(value: Any) -> int:
    """How much text a value holds."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(characters, value.values()))
    return sum(map(characters, value)) if isinstance(value, list) else 0


def cell_text(value: Any) -> str:
    """The text of a column's value; what is neither text nor parts of one is written as JSON, as an answer's fields may be."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and any(isinstance(part, Mapping) and "type" in part for part in value):
        return plain_text(without_nulls(value))
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        raise ValueError(f"a column holds a picture or sound, and {ONLY_TEXT}")
    return json.dumps(value, ensure_ascii=False, default=str)


def is_turns(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, Mapping) and {"role", "from"} & turn.keys() for turn in value)
    )


def joined(prompt: Any, completion: Any) -> list[Any]:
    """The turns of a prompt and its completion, of which one may be text, and the completion may repeat the prompt."""
    asked = prompt if is_turns(prompt) else [{"role": "user", "content": cell_text(prompt)}]
    answered = completion if is_turns(completion) else [{"role": "assistant", "content": cell_text(completion)}]
    begins = [normalise_message(turn) for turn in answered[: len(asked)]] == [normalise_message(turn) for turn in asked]
    return answered if begins else [*asked, *answered]


# ---------------------------------------------------------------------------------------------------------------
# Files of rows on this machine, read here and not by datasets: it infers one type for each column, which rows with
# tools, names or weights do not have, and ends the process over a line that is no object. The job reads them with
# these functions and check.py too, so that they see the same rows.

ROW_LIMIT = 5_000_000  # bytes; at 4 or 5 a token the longest contexts there are
COLUMN_LIMIT = 1_000
DOCUMENT_LIMIT = 200_000_000  # bytes of a .json file that is read whole
JSON_CELL = "\x1e"  # stands before a value that was not text, as before each value of a JSON text sequence (RFC 7464)
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
NumberedRows = Iterator[tuple[int, dict[str, Any]]]


def local_file(settings: Settings) -> Path | None:
    """The file that file_rows reads; None for a Parquet file, a folder or a data set on the Hub. Raises Stop."""
    path = Path(os.path.expanduser(settings.dataset))
    if not path.is_file() or path.suffix.lower() == ".parquet":
        return None
    if path.suffix.lower() not in READERS:
        raise Stop(
            "unknown_file",
            f"{path.name} is none of {', '.join(FILE_KINDS)}.",
            CONVERSIONS.get(path.suffix.lower(), OTHER_KIND).format(file=shlex.quote(str(path))),
        )
    return path


def file_rows(file: Path) -> Iterator[dict[str, str | None]]:
    """The rows of a local file, each value as text. Raises Stop at the first that is not sound, with its line's number."""
    for line, row in READERS[file.suffix.lower()](file):
        try:
            yield {name: as_cell(value) for name, value in row.items()}
        except RecursionError:
            raise unsound(file, line, "is nested too deeply", "Keep such a value as text.") from None


class Scan(NamedTuple):
    """What a local file holds, read to its end."""

    columns: list[str]  # of all rows
    rows: int
    first: list[dict[str, str | None]]


def scan_file(file: Path, keep: int) -> Scan:
    """Read a file to its end and keep its first rows. Raises Stop where a row is not sound, or there is none."""
    columns: dict[str, None] = {}
    first: list[dict[str, str | None]] = []
    count = 0
    for count, row in enumerate(file_rows(file), 1):
        columns.update(dict.fromkeys(row))
        if len(columns) > COLUMN_LIMIT:
            raise Stop(
                "dataset_unreadable",
                f"The first {count:,} rows of {file.name} have more than {COLUMN_LIMIT:,} different columns.",
                "Give each row the same few names: " + ROW_EXAMPLE,
            )
        if count <= keep:
            first.append(row)
    if not columns:
        raise Stop("no_rows", f"{file.name} holds no rows.", "Write a row into each line, below the names of a .csv's columns.")
    return Scan(list(columns), count, [{**dict.fromkeys(columns), **row} for row in first])


def as_cell(value: Any) -> str | None:
    """A value as text that from_cell reads; half a character (of an emoji cut in two), which has no UTF-8, is replaced."""
    text = value if value is None or isinstance(value, str) else JSON_CELL + json.dumps(value, ensure_ascii=False)
    return HALF_CHARACTER.sub("\ufffd", text) if text else text


def from_cell(value: Any) -> Any:
    """The value that as_cell wrote; of other rows, the value as it is."""
    if isinstance(value, str) and value.startswith(JSON_CELL):
        with contextlib.suppress(ValueError):
            return json.loads(value[1:])
    return value


def unsound(file: Path, line: int, what: str, fix: str) -> Stop:
    return Stop("dataset_unreadable", f"Line {line:,} of {file.name} {what}.", fix)


def numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file of text with their ends. Raises Stop on one that is too long or not UTF-8."""
    encode = (
        f"Save it as UTF-8. From a spreadsheet: save as CSV UTF-8. In a shell: iconv -f {{}} -t UTF-8 {shlex.quote(file.name)}"
    )
    with file.open("rb") as opened:
        for number in itertools.count(1):
            line = opened.readline(ROW_LIMIT + 1)
            if not line and number == 1:
                raise Stop("dataset_unreadable", f"{file.name} is empty.", "Write a row into each line of it.")
            if not line:
                return
            if b"\0" in line:
                raise unsound(
                    file, number, "is not UTF-8 text: it looks like UTF-16", encode.format("UTF-16") + " > utf8" + file.suffix
                )
            if len(line) > ROW_LIMIT:
                most = f"{ROW_LIMIT // 10**6} MB"
                raise unsound(
                    file,
                    number,
                    f"is longer than {most}, and no model reads that much at once",
                    f"Split it into rows of less than {most}, or remove it.",
                )
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                what = f"is not UTF-8 text: it holds the byte 0x{line[error.start]:02x}"
                raise unsound(file, number, what, encode.format("WINDOWS-1252") + " > utf8" + file.suffix) from None


def json_rows(file: Path) -> NumberedRows:
    """Rows of a file with an object in each line, or of one that is a JSON document."""
    if first_character(file) == "[":
        yield from document_rows(file)
        return
    began = False
    for number, line in numbered_lines(file):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if not began and (line.strip() == "{" or file.suffix.lower() == ".json"):  # an object over several lines
                yield from document_rows(file)
                return
            raise broken(file, number, error) from None
        began = True
        yield number, require_object(file, number, value)
    if not began:
        raise Stop("dataset_unreadable", f"{file.name} is empty.", "Write a row into each line of it.")


def first_character(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.read(1000).decode("utf-8-sig", "replace").lstrip()[:1]


def document_rows(file: Path) -> NumberedRows:
    """Rows of a list of objects, or of objects that stand one after the other, whatever lines they are on."""
    if file.stat().st_size > DOCUMENT_LIMIT:
        raise Stop(
            "dataset_unreadable",
            f"{file.name} is a JSON document of more than {DOCUMENT_LIMIT // 10**6} MB, which is not read whole.",
            f"Write a row into each line: jq -c '.[]' {shlex.quote(file.name)} > rows.jsonl",
        )
    text = whole_text(file)
    at, line, decoder = space_after(text, 0), 1, json.JSONDecoder()
    line += text.count("\n", 0, at)
    listed = text.startswith("[", at)
    at += listed
    while (start := space_after(text, at)) < len(text):
        line += text.count("\n", at, start)
        if listed and text.startswith("]", start):
            if (more := space_after(text, start + 1)) < len(text):
                raise unsound(
                    file, line + text.count("\n", start, more), "goes on after the list of rows has ended", ROW_EXAMPLE
                )
            return
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            raise broken(file, line + text.count("\n", start, getattr(error, "pos", start)), error) from None
        if end - start > ROW_LIMIT:
            raise unsound(
                file, line, f"begins a row longer than {ROW_LIMIT // 10**6} MB", "Split it into several rows, or remove it."
            )
        yield line, require_object(file, line, value)
        line += text.count("\n", start, end)
        at = space_after(text, end)
        line += text.count("\n", end, at)
        if listed and text.startswith(",", at):
            at += 1
        elif listed and at < len(text) and text[at] != "]":
            raise unsound(file, line, "is where a comma or the end of the list is missing", ROW_EXAMPLE)
    if listed:
        raise unsound(file, line, "is the last one, and the list of rows has not ended: the file is cut off", "Write it again.")


def whole_text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        for _ in numbered_lines(file):  # finds the line, and says how to mend it
            pass
        raise


def space_after(text: str, at: int) -> int:
    """Where the next character that is no space stands."""
    return re.compile(r"\s*").match(text, at).end()  # type: ignore[union-attr]


ROW_EXAMPLE = (
    'Write an object into each line: {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}'
)


def require_object(file: Path, line: int, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise unsound(file, line, f"is {json.dumps(value)[:40]}, not an object with the columns of a row", ROW_EXAMPLE)
    return value


def broken(file: Path, line: int, error: Exception) -> Stop:
    why = "it is nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))
    return unsound(file, line, f"is not sound JSON: {why}", "Mend or remove that line. " + ROW_EXAMPLE)


def csv_rows(file: Path) -> NumberedRows:
    """Rows of a table whose first line names the columns; every value is text. Spreadsheets write ; or tabs for commas, too."""
    csv.field_size_limit(ROW_LIMIT)
    lines = (line for _, line in numbered_lines(file))
    first = next(lines)
    delimiter = max(",;\t|", key=first.count)
    # Strict: a quote that is never closed is an error, and swallows no rows.
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    began = 1
    try:
        columns = [name.strip() or f"column {place}" for place, name in enumerate(next(reader), 1)]
        if len(set(columns)) < len(columns):
            raise unsound(file, 1, f"names a column twice: {', '.join(columns)}", "Give each column a name of its own.")
        began = reader.line_num + 1
        for values in reader:
            if any(values[len(columns) :]):
                what = f"has {len(values)} cells, and there are {len(columns)} columns"
                raise unsound(
                    file,
                    began,
                    what,
                    f"Put a cell that holds {delimiter!r} between quotes, or save it again from a spreadsheet.",
                )
            if values:
                yield began, {**dict.fromkeys(columns), **dict(zip(columns, values, strict=False))}
            began = reader.line_num + 1
    except csv.Error as error:
        raise unsound(
            file,
            began,
            f"begins a row whose quotes do not match: {error}",
            'Close each cell that begins with a quote, and write a quote within it twice: "". Or save the file again from a spreadsheet.',
        ) from None


def text_rows(file: Path) -> NumberedRows:
    for number, line in numbered_lines(file):
        if line.strip():
            yield number, {"text": line.rstrip("\r\n")}


READERS: dict[str, Callable[[Path], NumberedRows]] = {
    ".jsonl": json_rows, ".json": json_rows, ".csv": csv_rows, ".tsv": csv_rows, ".txt": text_rows,
}  # fmt: skip
FILE_KINDS = (*READERS, ".parquet")
OTHER_KIND = "Save it as .jsonl, an object in each line, or as .csv: each row needs a question and an answer."
SPREADSHEET = (
    "Open it in the spreadsheet program and save it as CSV UTF-8 (.csv), with the names of the columns in the first row."
)
CONVERSIONS = {
    ".gz": "Unpack it: gunzip {file}", ".zip": "Unpack it: unzip {file}", ".bz2": "Unpack it: bunzip2 {file}",
    ".xz": "Unpack it: unxz {file}", ".zst": "Unpack it: unzstd {file}", ".tgz": "Unpack it: tar xf {file}",
    ".tar": "Unpack it: tar xf {file}", ".ndjson": "Rename it: mv {file} rows.jsonl",
    ".xlsx": SPREADSHEET, ".xls": SPREADSHEET, ".ods": SPREADSHEET, ".numbers": SPREADSHEET,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------
# Masks: a row becomes the text the model sees, and the spans of it that the model learns to write.
#
# The conversation is rendered a second time with markers around each message's own texts. Where nothing but the
# markers differs, they show whose text each stretch is; between two stretches stands what the template itself wrote:
# how the one turn is closed and the other opened. Small conversations, rendered once, tell how the template opens an
# assistant's turn and closes it. So no family needs to be known by name, and text in a message that looks like a tag
# cannot be taken for one.

MARKER = "qXz7"  # lengthened for a row that holds it
IGNORE = -100
Span = tuple[int, int]
PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look something up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string", "description": "it"}}, "required": ["word"]},
    },
}
NOBODY = -2
CALL_NOT_RENDERED = "the chat template does not render its tool calls"


class Example(NamedTuple):
    """A row as the trainer sees it. labels has input_ids' length; -100 where nothing is learned."""

    input_ids: list[int]
    labels: list[int]
    total_tokens: int  # before the cut at max_length
    total_supervised: int

    def cut(self, max_length: int) -> Example:
        return self._replace(input_ids=self.input_ids[:max_length], labels=self.labels[:max_length])


class Rendered(NamedTuple):
    """A row's text, the spans of it that are learned, and how many turns are not because of their tool calls."""

    text: str
    spans: list[Span]
    calls_not_rendered: int = 0


class Mark(NamedTuple):
    """A marker within a text of a message: whose, of which kind, and where in that text."""

    owner: int
    kind: str  # "text", "name" or "argument"
    text: str
    at: int


class Run(NamedTuple):
    """A stretch of the rendered text from the first to the last text of one message. marks: the first's and last's number."""

    owner: int
    start: int
    end: int
    marks: tuple[int, int]
    after: int  # characters between the last marker and end


def edges(text: str) -> Span:
    """Where a text begins and ends but for the white space around it, which templates trim."""
    return len(text) - len(text.lstrip()), len(text.rstrip())


def within_tags(text: str) -> Span:
    """The same but for a tag at its beginning, which a template may look for."""
    start, end = edges(text)
    tag = re.compile(r"<[^<>\s]{1,40}>\s*").match(text, start)
    return (tag.end(), end) if tag and tag.end() < end else (start, end)


def middle(text: str) -> Span:
    start, end = edges(text)
    return (start + end) // 2, (start + end) // 2


class Trace:
    """Messages with markers in their texts, and what rendering them shows."""

    def __init__(self, messages: list[dict], nonce: str, place: Callable[[str], Span] | None, calls: bool):
        self.nonce, self.place, self.marks = nonce, place, list[Mark]()
        self.marker = re.compile(f"{nonce}([0-9]+)q")
        self.messages = [self.marked(index, message, calls) for index, message in enumerate(messages)]

    def marked(self, owner: int, message: dict, calls: bool) -> dict:
        kept = {
            key: self.put(owner, "text", value) if key in ("content", "reasoning_content", "thinking") else value
            for key, value in message.items()
        }
        if calls and "tool_calls" in message:
            kept["tool_calls"] = with_calls(
                message["tool_calls"],
                lambda name: self.put(owner, "name", name),
                lambda value: with_texts(value, lambda text: self.put(owner, "argument", text)),
            )
        return kept

    def put(self, owner: int, kind: str, text: Any) -> Any:
        if self.place is None or not isinstance(text, str) or not text.strip():
            return text
        start, end = self.place(text)
        number = len(self.marks)
        self.marks += (Mark(owner, kind, text, start), Mark(owner, kind, text, end))
        return f"{text[:start]}{self.nonce}{number}q{text[start:end]}{self.nonce}{number + 1}q{text[end:]}"

    def read(self, traced: str) -> tuple[str, list[tuple[int, int]]]:
        """The rendered text without its markers, and each marker's place in it with its number."""
        pieces = self.marker.split(traced)
        ends = itertools.accumulate(map(len, pieces[::2]))
        return "".join(pieces[::2]), list(zip(ends, map(int, pieces[1::2]), strict=False))

    def owners(self, places: list[tuple[int, int]], writes: Callable[[int, int], int]) -> list[int]:
        """Whose each marker's place is. A call's name above its result is nobody's: the template writes it again.

        writes(owner, number): how often a message alone writes a marker.
        """
        seen = Counter[int]()
        again = [seen.update([number]) or seen[number] > 1 for _, number in places]
        owners, following = [self.marks[number].owner for _, number in places], NOBODY
        for index in reversed(range(len(places))):
            number, owner = places[index][1], owners[index]
            if not again[index]:
                following = owner
            elif following != owner and seen[number] > writes(owner, number):
                owners[index] = NOBODY
            seen[number] -= 1
        return owners

    def runs(self, text: str, places: list[tuple[int, int]], owners: list[int]) -> list[Run]:
        """Whose text stands where. A message whose texts another's interrupt has several runs."""
        runs: list[Run] = []
        there = {number for _, number in places}
        for (at, number), owner in zip(places, owners, strict=True):
            mark = self.marks[number]
            # Where the other marker of a text is lost, as with thoughts that a template drops, the text itself shows.
            alone = number ^ 1 not in there or self.place is not edges
            start, end = self.grown(text, at, mark) if alone else (at, at)
            if runs and runs[-1].owner == owner:
                last = runs[-1]
                runs[-1] = last._replace(
                    start=min(last.start, start),
                    end=max(last.end, end),
                    marks=(last.marks[0], number),
                    after=max(last.end, end) - at,
                )
            else:
                start = max(start, runs[-1].end) if runs else start
                runs.append(Run(owner, start, max(start, end), (number, number), max(start, end) - at))
        return runs

    def grown(self, text: str, at: int, mark: Mark) -> Span:
        """The stretch around a marker that equals the text which it stands in, without white space around it."""
        lead, rest = mark.text[: mark.at].lstrip(), mark.text[mark.at :].rstrip()
        before, after = text[max(at - len(lead), 0) : at], text[at : at + len(rest)]
        start, end = at - same_end(before, lead), at + same_start(after, rest)
        first, last = edges(text[start:end])
        return min(start + first, at), max(start + last, at)

    def tail(self, traced: str, run: Run | None) -> str | None:
        """What a rendering writes after a run, up to the next message's text; None where it does not show the run."""
        if run is not None:
            _, found, traced = traced.rpartition(f"{self.nonce}{run.marks[1]}q")
            if not found:
                return None
        return self.marker.split(traced, maxsplit=1)[0][run.after if run else 0 :]


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with each text in it replaced, but for the keys."""
    if isinstance(value, Mapping):
        return {key: with_texts(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [with_texts(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def same_start(one: str, other: str) -> int:
    return len(os.path.commonprefix([one, other]))


def same_end(one: str, other: str) -> int:
    return len(other) if one.endswith(other) else same_start(one[::-1], other[::-1])


def quotation(text: str, most: int = 200) -> str:
    """What a model's files say, as data: on one line and between quotation marks that it does not close itself."""
    line = " ".join(text.split()).translate(dict.fromkeys(map(ord, "“”"), '"'))
    return f"“{line[:most] + '…' * (len(line) > most)}”"


class Renderer:
    """A tokenizer's chat template, and how it opens and closes an assistant's turn: built once for a data set."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        # Longest first, so that no token is taken for one that it begins with.
        names = sorted({*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}, key=len, reverse=True)
        self.tokens = "|".join(map(re.escape, names)) or r"(?!)"
        self.token = re.compile(rf"\s*(?:{self.tokens})")
        self.piece = re.compile(rf"(?s){self.tokens}|<[^<>\s]{{1,80}}>|\w+|.")
        first = tokenizer("a").input_ids[:1]
        self.bos = tokenizer.bos_token if tokenizer.bos_token and first == [tokenizer.bos_token_id] else ""
        self.eos = tokenizer.eos_token or ""
        self.prompt = self.header = self.closing = self.earlier_closing = self.call_closing = self.opened = ""
        self.in_parts, self.ends = False, False
        if tokenizer.chat_template:
            self.look_at_template()

    # ---- how the template writes

    def chat(self, messages: list[dict], tools: list | None = None, prompt: bool = False) -> str:
        """The conversation as text. Raises ValueError where the template refuses it."""
        if self.in_parts:
            messages = [message | {"content": [{"type": "text", "text": message["content"]}]} for message in messages]
        try:
            return self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # a template raises whatever it likes: over a system turn, or two questions in a row
            raise ValueError(f"the chat template refuses it: {quotation(str(error) or type(error).__name__)}") from error

    def look_at_template(self) -> None:
        """Find how the template opens an assistant's turn and closes it. Raises ValueError where it refuses a plain one.

        prompt: what the model is given to write after, `<|im_start|>assistant\\n<think>\\n` say. header: the part of it
        that stands before each earlier answer too; "" where a template has none. closing: what ends the last answer, up
        to its last token; earlier_closing: the others. opened: what a template that always ends by opening a turn
        writes after that.
        """
        tools = self.tools_needed()
        opening, before, tail = self.probe("user", "assistant", tools=tools)
        try:
            asked, bare = self.probe("user", tools=tools, prompt=True)[-1], self.probe("user", tools=tools)[-1]
        except ValueError:  # a template that takes no question without its answer
            asked, bare = before, ""
        try:
            _, *befores, _ = self.probe("user", "assistant", "user", "assistant", tools=tools)
            befores, between = [before, befores[0], befores[2]], befores[1]
        except ValueError:  # a template for one question
            befores, between = [before], tail
        self.asked = asked
        self.prompt = asked[self.shared(asked, bare) :].lstrip()
        self.header = next((part for part in self.beginnings(self.prompt) if all(part in text for text in befores)), "")
        self.splits = [(part, self.prompt[len(part) :]) for part in self.beginnings(self.prompt)[1:]]
        self.splits = [(part, rest) for part, rest in self.splits if rest.strip()]
        always_open = asked == bare and not between.startswith(tail.rstrip())
        self.closing = self.to_last_token(tail[: self.shared(tail, between)])
        if always_open:
            self.closing = self.without_openers(self.closing, opening)
            self.opened = tail[len(self.closing) :]
        elif not self.closing:
            self.closing = self.to_last_token(tail)
        if not self.closing and not always_open and between.startswith(tail.rstrip()):
            self.closing = tail.rstrip()
        self.earlier_closing = self.closing
        if self.closing and not between.startswith(self.closing):
            opened = same_end(between, opening)
            token = self.token.match(between)
            self.earlier_closing = self.to_last_token(between[: len(between) - opened]) or (token.group() if token else "")
        self.ends = bool(self.to_last_token(self.closing))

    def tools_needed(self) -> list | None:
        """What a plain conversation must come with: a few templates are for tools alone, or take texts only in parts."""
        refused: list[ValueError] = []
        for tools, self.in_parts in ((None, False), ([PROBE_TOOL], False), (None, True)):
            try:
                self.probe("user", "assistant", tools=tools)
                return tools
            except ValueError as error:
                refused.append(error)
        raise refused[0]

    def probe(self, *roles: str, tools: list | None = None, prompt: bool = False) -> list[str]:
        """What the template writes around the texts of a conversation, from its beginning to its end."""
        messages = [{"role": role, "content": f"{MARKER}{index}q"} for index, role in enumerate(roles)]
        texts = re.split(rf"{MARKER}[0-9]+q", self.chat(messages, tools, prompt))
        if len(texts) <= len(roles):
            raise ValueError("the chat template does not render each message")
        return [texts[0], *texts[-len(roles) :]]

    def beginnings(self, text: str) -> list[str]:
        """The longest first; none ends within a token, tag or word."""
        return [text[:end] for end in reversed([found.end() for found in self.piece.finditer(text)])]

    def shared(self, one: str, other: str) -> int:
        """How many characters of one are the beginning of other too, but for differences in white space.

        A token, tag or word is shared whole or not at all.
        """
        left = right = 0
        while True:
            same = same_start(one[left:], other[right:])
            if same:
                cuts = [self.cut(text, start, start + same) - start for text, start in ((one, left), (other, right))]
                same = min(cuts)
                left, right = left + same, right + same
            skipped = [re.compile(r"\s*").match(text, at).end() for text, at in ((one, left), (other, right))]  # type: ignore[union-attr]
            if skipped == [left, right] or skipped[0] == len(one) or skipped[1] == len(other):
                return left
            if self.next_piece(one, skipped[0]) != self.next_piece(other, skipped[1]):
                return left
            left, right = skipped

    def next_piece(self, text: str, at: int) -> str:
        return self.piece.match(text, at).group()  # type: ignore[union-attr]

    def cut(self, text: str, start: int, end: int) -> int:
        """end, or the beginning of the token, tag or word that it lies within."""
        at = start
        for found in self.piece.finditer(text, start):
            if found.end() > end:
                break
            at = found.end()
        return at

    def to_last_token(self, text: str) -> str:
        found = re.match(rf"(?s).*(?:{self.tokens})", text)
        return found.group() if found else ""

    def without_openers(self, closing: str, opening: str) -> str:
        """closing without the tokens at its end that open turns: those that the whole conversation begins with."""
        openers = set(re.findall(self.tokens, re.match(rf"(?:{self.token.pattern})*", opening).group()))  # type: ignore[union-attr]
        shorter = closing
        while any(shorter.endswith(token) for token in openers):
            shorter = next(shorter.removesuffix(token) for token in openers if shorter.endswith(token)).rstrip()
        return self.to_last_token(shorter)

    # ---- a row

    def render(self, row: Mapping[str, Any]) -> tuple[str, list[Span]]:
        """The text of a normalised row and the spans of it that are learned, as character offsets.

        Raises ValueError where the template refuses the row, or renders no call of a row that teaches nothing else.
        """
        rendered = self.rendered(row)
        return rendered.text, rendered.spans

    def rendered(self, row: Mapping[str, Any]) -> Rendered:
        """As render, with what is not learned."""
        if "text" in row:
            # Rows rendered beforehand carry these tokens already.
            body = row["text"].removeprefix(self.bos).removesuffix(self.eos)
            text = self.bos + body + self.eos
            return Rendered(text, [(len(self.bos), len(text))] if body.strip() else [])
        if "prompt" in row and not self.tokenizer.chat_template:
            head = self.bos + row["prompt"]
            text = head + row["completion"] + self.eos
            return Rendered(text, [(len(head), len(text))] if row["completion"].strip() else [])
        rendered = Conversation(self, as_messages(row), row.get("tools")).rendered()
        if rendered.calls_not_rendered and not rendered.spans:
            raise ValueError(CALL_NOT_RENDERED)
        return rendered

    def encode(self, row: Mapping[str, Any], max_length: int) -> Example:
        """Token ids and labels of a normalised row, cut at max_length tokens. Raises ValueError as render does."""
        return self.tokens_of(*self.render(row)).cut(max_length)

    def tokens_of(self, text: str, spans: list[Span]) -> Example:
        """Token ids and labels of a rendered row, whole."""
        return self.examples([(text, spans)])[0]

    def examples(self, rendered: list[tuple[str, list[Span]]]) -> list[Example]:
        """Token ids and labels of rendered rows, whole: a tokenizer takes many texts faster than each alone."""
        if not rendered:
            return []
        texts = [text for text, _ in rendered]
        encoding = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [
            labelled(ids, offsets, spans)
            for ids, offsets, (_, spans) in zip(encoding["input_ids"], encoding["offset_mapping"], rendered, strict=True)
        ]


def labelled(ids: list[int], offsets: list[Span], spans: list[Span]) -> Example:
    labels = [IGNORE] * len(ids)
    remaining = iter(spans)
    start, end = next(remaining, (math.inf, math.inf))
    for position, (left, right) in enumerate(offsets):
        while left >= end:
            start, end = next(remaining, (math.inf, math.inf))
        # A token that straddles the start is the first one the model writes: " answer" after "[/INST]".
        if left < end and right > start:
            labels[position] = ids[position]
    return Example(ids, labels, len(ids), len(ids) - labels.count(IGNORE))


class Conversation:
    """A row's messages, rendered: finds the spans of its assistant's turns."""

    def __init__(self, renderer: Renderer, messages: list[dict], tools: list | None):
        self.renderer, self.tools = renderer, tools
        self.learns = [has_answer(message) and message.get("weight") != 0 for message in messages]
        self.messages, self.text = self.readable(
            [{key: value for key, value in message.items() if key != "weight"} for message in messages]
        )
        self.trace, self.places = self.traced()
        self.memory: dict[tuple, int | None] = {}
        self.allowed = 4096 + 8 * len(messages)  # messages to render again at most, so that no row takes for ever
        owners = self.trace.owners(self.places, self.writes)
        self.runs = self.trace.runs(self.text, self.places, owners)
        self.last_run = {run.owner: number for number, run in enumerate(self.runs)}
        self.called = {self.trace.marks[number].owner for _, number in self.places if self.trace.marks[number].kind != "text"}

    def readable(self, messages: list[dict]) -> tuple[list[dict], str]:
        """The messages with the arguments of tool calls as the template takes them, and their rendering.

        Most take a mapping. Some take the JSON text that OpenAI writes, and refuse a mapping or write it as Python does.
        """
        calls = [call for message in messages for call in arguments_of(message) if isinstance(call, Mapping) and call]
        try:
            text = self.renderer.chat(messages, self.tools)
            if not any(str(arguments) in text for arguments in calls[:3]):  # the others are written alike
                return messages, text
        except ValueError:
            if not calls:
                raise
        as_json = [
            message | {"tool_calls": with_calls(message["tool_calls"], lambda name: name, json_text)}
            if "tool_calls" in message
            else message
            for message in messages
        ]
        try:
            return as_json, self.renderer.chat(as_json, self.tools)
        except ValueError:
            return messages, self.renderer.chat(messages, self.tools)

    def traced(self) -> tuple[Trace, list[tuple[int, int]]]:
        """Markers that change nothing else in the rendering, and where they stand in it; none where each changes more."""
        nonce = next(mark for mark in (MARKER + "7" * more for more in itertools.count()) if mark not in self.text)
        for place, calls in itertools.product((edges, within_tags, middle), (True, False)):
            if not calls and not any("tool_calls" in message for message in self.messages):
                continue
            trace = Trace(self.messages, nonce, place, calls)
            with contextlib.suppress(ValueError):
                text, places = trace.read(self.renderer.chat(trace.messages, self.tools))
                if text == self.text:
                    return trace, places
        return Trace(self.messages, nonce, None, False), []

    def rendered(self) -> Rendered:
        spans: list[tuple[int, int, int]] = []
        for before, run, after in neighbours(self.runs):
            if run.owner != NOBODY and self.messages[run.owner]["role"] == "assistant":
                spans.append((*self.span(before, run, after), run.owner))
        spans += filter(None, map(self.span_of_unmarked, range(len(self.messages)), self.messages))
        spans.sort()
        written: dict[int, str] = {}
        for start, end, owner in spans:
            written[owner] = written.get(owner, "") + self.text[start:end]
        unrendered = {
            index
            for index, message in enumerate(self.messages)
            if self.learns[index] and "tool_calls" in message and not self.shows_calls(message, written.get(index, ""))
        }
        found: list[Span] = []
        for start, end, owner in spans:
            start = max(start, found[-1][1]) if found else start
            if self.learns[owner] and owner not in unrendered and start < end:
                found.append((start, end))
        ends_with_answer = spans and spans[-1][2] == len(self.messages) - 1
        return Rendered(*self.ended(found, spans[-1][1] if ends_with_answer else None), len(unrendered))

    def span(self, before: Run | None, run: Run, after: Run | None) -> Span:
        """From where the model writes a run to where it stops, what closes the turn included."""
        begin, end = before.end if before else 0, after.start if after else len(self.text)
        start = begin + self.opening(self.text[begin : run.start], before, run)
        if start == run.start:
            start += self.given(begin, run)
        return start, run.end + self.closing(self.text[run.end : end], run, after is None)

    def opening(self, gap: str, before: Run | None, run: Run) -> int:
        """Where in what the template writes before a message's text the model begins to write."""
        known = self.renderer
        if run.owner - (before.owner if before else -1) == 1:  # no message between them, an empty one say
            if known.header and (at := gap.rfind(known.header)) >= 0:
                at += len(known.header)
                return at + known.shared(gap[at:], known.prompt[len(known.header) :])
            if before and self.messages[before.owner]["role"] == "user" and gap.startswith(known.asked.rstrip()):
                return known.shared(gap, known.asked)
        # A turn that goes on after a tool's result, say: what it is asked with shows how much the model is given.
        prompt = self.shared_with("opening", gap, before, run.owner, prompt=True)
        return len(gap) if prompt is None else prompt

    def given(self, begin: int, run: Run) -> int:
        """How much of a message's own text is the end of the prompt, `<think>\\n` say: the model does not write it."""
        for first, rest in self.renderer.splits:
            if self.text.startswith(rest, run.start) and self.text.endswith(first, begin, run.start):
                return len(rest)
        return 0

    def closing(self, gap: str, run: Run, last: bool) -> int:
        """How much of what the template writes after a message's text the model writes: it must learn to stop."""
        known = self.renderer
        ends = [(at, -len(mark)) for mark in (known.closing, known.earlier_closing) if mark and (at := gap.find(mark)) >= 0]
        if ends:
            at, length = min(ends)
            return at - length
        if last:
            rest = gap.removesuffix(known.opened)
            return len(known.to_last_token(rest) or rest.rstrip())
        end = 0
        if gap.strip() and (known.closing or self.trace.marks[run.marks[1]].kind != "text"):
            shared = self.shared_with("closing", gap, run, run.owner + 1, prompt=False) or 0
            end = len(gap[:shared].rstrip())
        if not known.closing and (token := known.token.match(gap, end)):
            end = token.end()  # no token ends an answer here: the next turn's does
        return end

    def writes(self, owner: int, number: int) -> int:
        """How often the conversation up to a message, whose call's name it is, writes a marker."""
        key = ("writes", len(self.messages[owner].get("tool_calls", ())), self.trace.marks[number].kind)
        if key not in self.memory:
            traced = self.render_first(owner + 1, prompt=False)
            self.memory[key] = 1 if traced is None else len(re.findall(f"{self.trace.nonce}{number}q", traced))
        return self.memory[key] or 1

    def shared_with(self, what: str, gap: str, run: Run | None, count: int, prompt: bool) -> int | None:
        """How far a gap after a run is what the first messages alone are followed by; None where they do not show it."""
        key = (what, gap, run is None)
        if key not in self.memory:
            tail = self.tail(run, count, prompt)
            self.memory[key] = None if tail is None else self.renderer.shared(gap, tail)
        return self.memory[key]

    def tail(self, run: Run | None, count: int, prompt: bool) -> str | None:
        traced = self.render_first(count, prompt)
        return None if traced is None else self.trace.tail(traced, run)

    def render_first(self, count: int, prompt: bool) -> str | None:
        """The first messages alone, with their markers; None where the template refuses them, or after too many of them."""
        if self.allowed < count:
            return None
        self.allowed -= count
        try:
            return self.renderer.chat(self.trace.messages[:count], self.tools, prompt)
        except ValueError:
            return None

    def span_of_unmarked(self, index: int, message: dict) -> tuple[int, int, int] | None:
        """The span of what a template writes of a message without any of its texts, a call's name written out say."""
        if message["role"] != "assistant" or not self.learns[index] or index in self.called:
            return None
        if index in self.last_run and "tool_calls" not in message:
            return None
        before = next((self.last_run[one] for one in range(index - 1, -1, -1) if one in self.last_run), -1)
        after = self.runs[before + 1] if before + 1 < len(self.runs) else None
        if after and after.owner == index:  # what stands there belongs to that run
            return None
        run = self.runs[before] if before >= 0 else None
        begin, end = run.end if run else 0, after.start if after else len(self.text)
        gap = self.text[begin:end]
        asked, told = self.tail(run, index, True), self.tail(run, index + 1, False)
        if asked is None or told is None:
            return None
        start = self.renderer.shared(gap, asked)
        written = gap[: self.renderer.shared(gap, told)].removesuffix(self.renderer.opened).rstrip()
        if not re.search(r"\w", written[start:].replace(self.renderer.closing, "").replace(self.renderer.earlier_closing, "")):
            return None
        return begin + start, begin + len(written), index

    def shows_calls(self, message: dict, written: str) -> bool:
        """Whether what is written of a turn holds each of its tool calls, its own other texts aside."""
        for text in map(message.get, ("content", "reasoning_content", "thinking")):
            if isinstance(text, str) and text.strip():
                written = written.replace(text.strip(), " ")
        calls = message["tool_calls"] if isinstance(message["tool_calls"], list) else []
        return all(shows_call(call, written) for call in calls if isinstance(call, Mapping))

    def ended(self, found: list[Span], last: int | None) -> tuple[str, list[Span]]:
        """With EOS after the last answer where no token closes it: the model would learn never to stop."""
        if self.renderer.ends or not found or found[-1][1] != last:
            return self.text, found
        text = self.text[: found[-1][1]].rstrip() + self.renderer.eos
        return text, [*found[:-1], (found[-1][0], len(text))]


def neighbours(runs: list[Run]) -> Iterable[tuple[Run | None, Run, Run | None]]:
    return zip([None, *runs], runs, [*runs[1:], None], strict=False)


def arguments_of(message: Mapping[str, Any]) -> list[Any]:
    found: list[Any] = []
    with_calls(message.get("tool_calls"), lambda name: name, lambda value: found.append(value))
    return found


def json_text(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else value


def shows_call(call: Mapping[str, Any], written: str) -> bool:
    function = call["function"] if isinstance(call.get("function"), Mapping) else call
    words, numbers = words_and_numbers(function.get("arguments"))
    name = str(function.get("name", ""))
    named = name in written if name else True
    return all(word in written for word in words) and (named or bool(numbers) and all(one in written for one in numbers))


def words_and_numbers(value: Any) -> tuple[list[str], list[str]]:
    """What must stand in any rendering of a JSON value: of each text its longest plain word, since the rest may be
    escaped, and the numbers.
    """
    if isinstance(value, Mapping | list):
        found = [words_and_numbers(item) for item in (value.values() if isinstance(value, Mapping) else value)]
        return [word for words, _ in found for word in words], [number for _, numbers in found for number in numbers]
    if isinstance(value, str):
        return [max(re.findall("[A-Za-z0-9]+", value), key=len, default="")], []
    return [], [json.dumps(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def as_messages(row: Mapping[str, Any]) -> list[dict]:
    if "messages" in row:
        return row["messages"]
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]


def has_answer(message: Mapping[str, Any]) -> bool:
    return bool(message["content"].strip() or message.get("tool_calls"))


def segments(tokenizer: Any, example: Example) -> list[dict[str, Any]]:
    """The row as [{"text", "learned"}], decoded from the very tokens and labels that are trained on."""
    parts: list[dict[str, Any]] = []
    start = 0
    flags = [label != IGNORE for label in example.labels]
    for position in range(1, len(flags) + 1):
        if position == len(flags) or flags[position] != flags[start]:
            text = tokenizer.decode(example.input_ids[start:position], skip_special_tokens=False)
            parts.append({"text": text, "learned": flags[start]})
            start = position
    return parts


def make_renderer(tokenizer: Any, layout: Format) -> Renderer:
    """The tokenizer's Renderer. Raises Stop where it cannot turn this format into text with known offsets."""
    if not tokenizer.is_fast:
        raise Stop(
            "slow_tokenizer",
            "This model has no fast tokenizer, so its masks cannot be computed exactly.",
            "Choose a model whose repository holds a tokenizer.json.",
        )
    if not tokenizer.chat_template and layout.name in ("messages", "sharegpt"):
        raise Stop(
            "no_chat_template",
            "The data set holds conversations and the model's tokenizer has no chat template.",
            "Choose the instruct (or -it, -chat) version of this model, or rows of prompt + completion or text.",
        )
    try:
        return Renderer(tokenizer)
    except ValueError as error:
        raise Stop(
            "bad_chat_template",
            f"A question and an answer cannot be rendered with this model's chat template: {error}",
            "Choose another version of this model: its template is not for plain conversations.",
        ) from error


# ---------------------------------------------------------------------------------------------------------------
# Models: which can learn to continue a conversation.


def require_decoder(config: Mapping[str, Any]) -> None:
    """Raises Stop where a model's config.json describes one that this template cannot train."""
    kind = (config.get("architectures") or ["unknown"])[0]
    method = (config.get("quantization_config") or {}).get("quant_method")
    if config.get("is_encoder_decoder"):
        raise Stop(
            "encoder_decoder",
            f"{kind} reads with an encoder and writes with a decoder; this template trains decoders only.",
            "Choose a model whose architecture ends in ForCausalLM, such as LiquidAI/LFM2.5-1.2B-Instruct.",
        )
    if re.search(r"For(MaskedLM|SequenceClassification|TokenClassification|QuestionAnswering|PreTraining)$", kind) or (
        re.search(r"Bert|Electra|MPNet", kind) and not kind.endswith(("ForCausalLM", "LMHeadModel"))
    ):
        raise Stop(
            "not_a_decoder",
            f"{kind} is an encoder or a classifier: it does not write text.",
            "Choose a model whose architecture ends in ForCausalLM, such as LiquidAI/LFM2.5-1.2B-Instruct.",
        )
    if method in ("gptq", "awq"):
        raise Stop(
            "quantized_model",
            f"The weights are quantised with {method}, which cannot be trained with LoRA here.",
            "Choose the original 16-bit model, or its bitsandbytes 4-bit version.",
        )


OVERFLOW_IN_FP16 = ("gemma", "qwen3_5")  # model types whose activations leave fp16's range: NaN instead of a loss


def needs_bf16(config: Mapping[str, Any]) -> bool:
    """Whether a model with this config.json can only be trained on a GPU with bf16 (not on a T4)."""
    kinds = (config.get("model_type"), (config.get("text_config") or {}).get("model_type"))
    return any(str(kind).startswith(OVERFLOW_IN_FP16) for kind in kinds)


# ---------------------------------------------------------------------------------------------------------------
# LoRA: which linear layers get an adapter, and what share of them that is.

NO_DECODER = r"lm_head|embed|vision|visual|image|audio|multi_modal|projector"  # anywhere in a module's name
NO_TARGET = r"router|gate|wte|wpe"  # its last part
NOT_ADAPTED = re.compile(rf"{NO_DECODER}|(^|\.)({NO_TARGET})$")
EXPERTS = re.compile(r"(^|\.)experts\.|block_sparse_moe\.(input|output)_linear")
Shapes = Mapping[str, tuple[int, int]]  # module name -> (features out, features in)


def adaptable(linears: Shapes) -> dict[str, tuple[int, int]]:
    """The decoder's linear layers: no embedding, head, router or encoder of pictures and sound."""
    return {name: shape for name, shape in linears.items() if not NOT_ADAPTED.search(name)}


def leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def lora_targets(linears: Shapes, asked: str = "auto") -> list[str]:
    """Names of the modules to adapt, as PEFT's target_modules has them. Raises Stop on a name the model lacks."""
    present = sorted({leaf(name) for name in adaptable(linears)})
    if asked == "auto":
        return present
    wanted = [name.strip() for name in asked.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in present]:
        raise Stop(
            "unknown_target",
            f"The model has no linear layer named {', '.join(unknown)}.",
            f"Pass --target-modules {shlex.quote(','.join(present))}, or leave it at auto.",
        )
    return wanted


def target_pattern(targets: Iterable[str]) -> str:
    """targets as one pattern over whole module names.

    Unsloth narrows a list of names by its own idea of what attention and MLP are called, and loses LFM2's
    convolutions that way; a pattern it passes to PEFT as it stands.
    """
    leaves = "|".join(re.escape(name) for name in targets if not re.fullmatch(NO_TARGET, name))
    return rf"(?!.*(?:{NO_DECODER}))(?:.*\.)?(?:{leaves})"


def lora_size(shapes: Iterable[tuple[int, int]], rank: int = 1) -> int:
    """Trainable parameters of an adapter of this rank on linear layers of these shapes."""
    return sum(rank * (out + into) for out, into in shapes)


ROOM = 0.75  # share of a GPU's memory that weights and activations may fill; the rest is for what they do not count


def activation_bytes(linears: Shapes, tokens: int) -> float:
    """What a forward pass keeps when nothing is computed anew: what each linear layer reads and writes, in 16 bits."""
    return tokens * 2 * sum(out + into for out, into in adaptable(linears).values())


TRL_ACTIVATIONS = 1.7  # times what is kept without Unsloth, as in benchmarks/memory.csv: at most
LOGITS_BYTES = 6  # per token and vocabulary entry, 16 and 32 bits


def logits_bytes(config: Mapping[str, Any], tokens: int) -> float:
    """What the logits take: nothing to speak of where Unsloth computes the loss in slices, as it does for most."""
    text = config.get("text_config") or config
    whole = str(text.get("model_type", "")).startswith("gemma")
    return tokens * LOGITS_BYTES * text.get("vocab_size", 262_144) if whole else 0.0


def keeps_activations(
    settings: Settings, linears: Shapes, config: Mapping[str, Any], tokens: int, weights: float, memory: float
) -> bool:
    """Whether a run keeps its activations, which is fastest, or computes them anew; sizes in bytes of one GPU."""
    if settings.gradient_checkpointing != "auto":
        return settings.gradient_checkpointing == "off"
    activations = activation_bytes(linears, tokens) * (TRL_ACTIVATIONS if settings.backend == "trl" else 1)
    return weights + activations + logits_bytes(config, tokens) < ROOM * memory


def coverage(linears: Shapes, adapted: Iterable[str]) -> float:
    """Share of the possible LoRA parameters (equal rank everywhere) that the adapted modules hold; 1.0 = whole."""
    possible = adaptable(linears)
    reached = [possible[name] for name in set(adapted) & possible.keys()]
    return lora_size(reached) / max(lora_size(possible.values()), 1)


# ---------------------------------------------------------------------------------------------------------------
# From here on the heavy libraries are used, each imported in the function that needs it.


def choose(kind: str, asked: str, available: list[str], preferred: str) -> str:
    """The configuration or split to use: the one asked for, the usual one, or the only one. Raises Stop."""
    if asked in available:
        return asked
    flag = "--dataset-" + kind
    if asked:
        raise Stop(
            f"unknown_{kind}",
            f"The data set has no {kind} {asked!r}; it has: {', '.join(available)}.",
            f"Pass {flag} {shlex.quote(available[0])}.",
        )
    if preferred in available or len(available) == 1:
        return preferred if preferred in available else available[0]
    raise Stop(
        f"{kind}_needed",
        f"The data set has more than one {kind}: {', '.join(available)}.",
        f"Pass one of them: {flag} {shlex.quote(available[0])}.",
    )


def load_rows(settings: Settings, streaming: bool = False) -> Any:
    """The data set's rows (a datasets.Dataset, or an IterableDataset when streaming). Raises Stop."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    if (file := local_file(settings)) and not streaming:
        return load_file(file)
    try:
        return load_dataset(
            **data_source(settings, require_sound_starts if streaming else require_no_null), streaming=streaming
        )
    except Stop:
        raise
    except DatasetNotFoundError as error:
        raise Stop(
            "dataset_not_found",
            f"The data set {settings.dataset} cannot be found: {error}",
            "Correct the id; for a private or gated one, ask for access and log in with `hf auth login`.",
        ) from error
    except Exception as error:  # each file format has its own errors: an empty file, a broken line, a wrong type
        raise unreadable(settings, error) from error


def load_file(file: Path) -> Any:
    """A local file's rows as a Dataset of text: no type is inferred, so rows may differ as they like. Raises Stop."""
    from datasets import Dataset, Features, Value

    features = Features({name: Value("string") for name in scan_file(file, 0).columns})
    # The digest makes a file that has changed another data set to the cache.
    return Dataset.from_generator(digested_rows, features=features, gen_kwargs={"path": str(file), "digest": file_digest(file)})


def digested_rows(path: str, digest: str) -> Iterator[dict[str, str | None]]:
    yield from file_rows(Path(path))


def media_columns(features: Mapping[str, Any] | None) -> list[str]:
    """The columns whose type is pictures, sound or video, alone or in a list."""
    return [name for name, feature in (features or {}).items() if holds_media(feature)]


def holds_media(feature: Any) -> bool:
    if isinstance(feature, Mapping):
        return any(map(holds_media, feature.values()))
    if within := getattr(feature, "feature", None):
        return holds_media(within)
    return type(feature).__name__ in ("Image", "Audio", "Video", "Pdf", "Nifti")


def unreadable(settings: Settings, error: Exception) -> Stop:
    return Stop(
        "dataset_unreadable",
        f"The data set {settings.dataset} cannot be read: {type(error).__name__}: {error}",
        "Write its file again: it is empty, cut off, or not of the kind that its name says."
        if Path(os.path.expanduser(settings.dataset)).is_file()
        else "Look at its files: an empty one, or rows whose columns differ, cannot be loaded. A copy of them as one local "
        ".jsonl file is read line by line, and the line that is wrong is named.",
    )


def data_source(settings: Settings, require_sound: Callable[[Iterable[str]], None] = lambda files: None) -> dict[str, Any]:
    """Arguments of load_dataset for a local Parquet file, a local folder or a data set on the Hub.

    require_sound is called with the data set's JSON files before datasets reads the first byte of one.
    """
    from datasets import get_dataset_config_names, get_dataset_split_names, load_dataset_builder

    path = Path(os.path.expanduser(settings.dataset))
    if path.is_file():
        return {"path": "parquet", "data_files": str(path), "split": "train"}
    if settings.dataset.startswith((".", "/", "~")) and not path.exists():
        raise Stop("dataset_not_found", f"There is no file or folder {settings.dataset}.", "Correct --dataset.")
    revision = settings.dataset_revision or None
    names = get_dataset_config_names(settings.dataset, revision=revision)
    config = choose("config", settings.dataset_config, names, "default")
    built = load_dataset_builder(settings.dataset, config, revision=revision).config
    files = (str(file) for files in (getattr(built, "data_files", None) or {}).values() for file in files)
    require_sound(file for file in files if re.search(r"\.jsonl?(\.\w+)?$", file))
    splits = get_dataset_split_names(settings.dataset, config, revision=revision)
    split = choose("split", settings.dataset_split, splits, "train")
    return {"path": settings.dataset, "name": config, "split": split, "revision": revision}


STARTS = 32  # files of which the start is read before datasets streams them
START_BYTES = 11_000_000  # of the first one: datasets parses 10 MiB before it gives the first row
NEXT_BYTES = 64_000  # of each other


def require_sound_starts(files: Iterable[str]) -> None:
    """What the first rows are streamed from. Raises Stop on a null, and on a line that takes too much memory."""
    for number, file in enumerate(itertools.islice(files, STARTS)):
        scan_lines(file, START_BYTES if number == 0 else NEXT_BYTES)


def require_no_null(files: Iterable[str]) -> None:
    """Every line that the job will read, of the copies that datasets reads. Raises Stop on a null."""
    from datasets.utils.file_utils import cached_path

    for file in files:
        scan_lines(cached_path(file))


def scan_lines(file: str, most: int | None = None) -> None:
    """Raises Stop on a line `null` among the first `most` bytes (of all): pyarrow may end the process over it, without a
    word, wherever it stands. Where `most` is given, also on a line that is longer than a row may be.
    """
    import fsspec  # type: ignore[import-untyped]

    system, path = fsspec.url_to_fs(file)
    with system.open(path, "rb", compression="infer", block_size=min(most or START_BYTES, 5_000_000)) as opened:
        lines = io.BufferedReader(opened)
        start = lines.peek(100).removeprefix(b"\xef\xbb\xbf").lstrip()
        if re.match(rb"\[\s*null\b", start):
            raise unsound(Path(path), 1, "begins with null, not with an object with the columns of a row", ROW_EXAMPLE)
        if re.match(rb"\[|\{\s*\n", start):
            return  # a document, in which a null may well have a line of its own
        number, at, is_start = 0, 0, True
        while (most is None or at < most) and (piece := lines.readline(ROW_LIMIT + 1)):
            number, at = number + is_start, at + len(piece)
            if is_start and piece[:100].strip(b"\xef\xbb\xbf \t\r\n") == b"null":
                raise unsound(Path(path), number, "is null, not an object with the columns of a row", ROW_EXAMPLE)
            if most and len(piece) > ROW_LIMIT:
                what = f"is longer than {ROW_LIMIT // 10**6} MB, and no model reads that much at once"
                raise unsound(Path(path), number, what, "Split it into shorter rows, or train on a copy without it.")
            is_start = piece.endswith(b"\n")


def file_digest(file: Path) -> str:
    with file.open("rb") as opened:
        return "sha256:" + hashlib.file_digest(opened, "sha256").hexdigest()


def data_revision(settings: Settings) -> str | None:
    """The data set's commit on the Hub, or a local file's sha256; what was asked for where the Hub does not say."""
    from huggingface_hub import HfApi

    if (path := Path(os.path.expanduser(settings.dataset))).is_file():
        return file_digest(path)
    asked = settings.dataset_revision or None
    try:
        return HfApi().dataset_info(settings.dataset, revision=asked).sha
    except Exception:  # a local folder, or rows from the cache of a machine without a network: they are there all the same
        return asked


ROWS_AT_ONCE = 64  # through the tokenizer
DIGESTED = 8  # rows


def encode_rows(rows: Any, renderer: Renderer, layout: Format, max_length: int) -> tuple[Any, dict[str, Any]]:
    """rows as input_ids, labels and length; those that teach nothing are left out, and counted by reason."""
    from datasets import Features, Value

    numbers, number = [Value("int64")], Value("int64")
    kinds = {"input_ids": numbers, "labels": numbers, "length": number, "supervised": number}
    features = Features(kinds | {"cut": Value("bool"), "dropped": Value("string")})  # a batch of empty rows tells none

    def encode(columns: Mapping[str, list]) -> dict[str, list]:
        batch = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        made = [as_encoded(example, max_length) for example in examples_of(renderer, layout, batch)]
        return {name: [one[name] for one in made] for name in made[0]}

    processes = min(os.cpu_count() or 1, 16) if len(rows) > 5000 else None
    encoded = rows.map(
        encode,
        batched=True,
        batch_size=ROWS_AT_ONCE,
        remove_columns=rows.column_names,
        features=features,
        num_proc=processes,
        desc="Rows to tokens",
    )
    reasons: dict[str, int] = {}
    for reason in encoded["dropped"]:
        if reason:
            reasons[reason] = reasons.get(reason, 0) + 1
    kept = encoded.filter(lambda reason: not reason, input_columns="dropped")
    tokens = sum(kept["length"])
    supervised = sum(kept["supervised"])
    summary = {
        "rows": len(encoded),
        "rows_kept": len(kept),
        "rows_without_answer": len(encoded) - len(kept),
        "dropped": reasons,
        "rows_cut": sum(encoded["cut"]),
        "tokens": tokens,
        "supervised_tokens": supervised,
        "supervised_fraction": round(supervised / max(tokens, 1), 4),
    }
    return kept.select_columns(["input_ids", "labels", "length"]), summary


def examples_of(renderer: Renderer, layout: Format, rows: Iterable[Mapping[str, Any]]) -> list[Example | str]:
    """Each row's example, whole, or the reason why it has none."""
    rendered: list[tuple[str, list[Span]] | str] = []
    for row in rows:
        try:
            rendered.append(renderer.render(normalise_row(row, layout)))
        except ValueError as error:
            rendered.append(str(error))
    made = iter(renderer.examples([one for one in rendered if not isinstance(one, str)]))
    return [one if isinstance(one, str) else next(made) for one in rendered]


def as_encoded(example: Example | str, max_length: int) -> dict[str, Any]:
    """An example cut at max_length, or the reason why there is none, as encode_rows keeps it."""
    if isinstance(example, str):
        return {"input_ids": [], "labels": [], "length": 0, "supervised": 0, "cut": False, "dropped": example}
    trained = example.cut(max_length)
    supervised = len(trained.labels) - trained.labels.count(IGNORE)
    return {
        "input_ids": trained.input_ids,
        "labels": trained.labels,
        "length": len(trained.input_ids),
        "supervised": supervised,
        "cut": example.total_tokens > max_length,
        "dropped": "" if supervised else "answer cut away" if example.total_supervised else "no answer",
    }


def digest_of(renderer: Renderer, layout: Format, rows: Iterable[Mapping[str, Any]]) -> str:
    """The first rows' token ids in 16 characters: check.py and the job compare what each of them read."""
    examples = examples_of(renderer, layout, itertools.islice(rows, DIGESTED))
    ids = [None if isinstance(example, str) else example.input_ids for example in examples]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def require_supervised(masks: Mapping[str, Any]) -> None:
    if not masks["supervised_tokens"]:
        why = ", ".join(f"{count} × {reason}" for reason, count in masks["dropped"].items())
        raise Stop(
            "nothing_supervised",
            f"Not one token of the data set would be learned: {why}.",
            "Look at the rows' answers, or pass a larger --max-seq-length.",
        )


def split_rows(rows: Any, settings: Settings) -> tuple[Any, Any]:
    """Training rows and, where asked for, evaluation rows (else None). Raises Stop when nothing is left to train on."""
    if settings.num_samples:
        rows = rows.select(range(min(settings.num_samples, len(rows))))
    held_out = min(round(len(rows) * settings.eval_split), settings.max_eval_rows, len(rows) - 1)
    if len(rows) == 0:
        raise Stop("no_rows", "The split of the data set has no rows.", "Choose another with --dataset-split.")
    if held_out < 1:
        return rows, None
    parts = rows.train_test_split(test_size=held_out, seed=settings.seed)
    return parts["train"], parts["test"]


SETTINGS_FILE = "training_settings.json"
LAST_CHECKPOINT = "last-checkpoint"  # folder of the repository
OPEN_PAUSES_S = (5, 20, 60)


def open_repository(settings: Settings) -> tuple[Any, Settings]:
    """Create the output repository and make its first commit, so that a push that cannot work fails now, not at the end.

    The client (None without a repository), and the settings: with --resume where the platform started this job again.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi, set_client_factory
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils._http import default_client_factory

    def client() -> Any:
        made = default_client_factory()
        made.event_hooks["request"].append(limit)
        return made

    def limit(request: Any) -> None:  # where a call sets no timeout the client waits for ever, on a paid machine
        request.extensions["timeout"] = {part: s or HUB_TIMEOUT_S for part, s in request.extensions["timeout"].items()}

    set_client_factory(client)
    api = HfApi()
    if not settings.output_repo:
        if os.environ.get("JOB_ID"):
            raise Stop(
                "no_output_repo",
                "A job's disk is gone when it ends, and no repository is named for the result.",
                "Pass --output-repo YOU/NAME.",
            )
        return None, settings
    for pause in (*OPEN_PAUSES_S, None):
        try:
            if is_restarted(api, settings):
                settings = replace(settings, resume=True)
            begin_repository(api, settings)
            return api, settings
        except (HTTPError, LocalEntryNotFoundError) as error:
            if is_refused(error):
                raise Stop(
                    "push_denied",
                    f"{settings.output_repo} cannot be written to: {error}",
                    "Use a token with write permission for this owner (https://huggingface.co/settings/tokens).",
                ) from error
            if pause is None:
                fix = "Submit the same command again in some minutes."
                raise Stop("hub_unreachable", f"{settings.output_repo} cannot be opened: {error}", fix) from error
            time.sleep(pause)
    raise AssertionError("the last pause ends the loop")


def begin_repository(api: Any, settings: Settings) -> None:
    """The first commit. Raises Stop where the repository is something else's or public, and what the client raises.

    A new run takes an earlier one's last-checkpoint away, so that no --resume finds it; it stays in the history.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api.create_repo(settings.output_repo, private=not settings.public, exist_ok=True)
    files = api.list_repo_files(settings.output_repo)
    if {"config.json", "adapter_config.json"} & set(files) == {"config.json"}:
        raise Stop(
            "name_taken",
            f"{settings.output_repo} holds a whole model, and the adapter would be mixed with it.",
            "Name another --output-repo.",
        )
    require_private(api.repo_info(settings.output_repo), settings)
    began = CommitOperationAdd(SETTINGS_FILE, json.dumps(asdict(settings), indent=1).encode())
    old = any(name.startswith(f"{LAST_CHECKPOINT}/") for name in files) and not settings.resume
    removed = [CommitOperationDelete(f"{LAST_CHECKPOINT}/", is_folder=True)] if old else []
    api.create_commit(settings.output_repo, [began, *removed], commit_message="Training begins")


def require_private(found: Any, settings: Settings) -> None:
    """Raises Stop where a repository that was there before is public, and --public was not passed."""
    if not settings.public and found.private is False:
        raise Stop(
            "public_repository",
            f"{settings.output_repo} is public: everybody would see the adapter, its card and what the card quotes.",
            "Name another --output-repo, make this one private in its settings, or pass --public.",
        )


def is_restarted(api: Any, settings: Settings) -> bool:
    """Whether the platform started this job before (--attempts): its own checkpoint is in the repository then.

    Such a start has the arguments of the first one, so that nothing but this tells them apart.
    """
    facts = run_facts()
    if not settings.output_repo or settings.resume or facts.get("attempts", 1) < 2 or not facts.get("plan_id"):
        return False
    from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError

    try:
        path = api.hf_hub_download(settings.output_repo, f"{LAST_CHECKPOINT}/{SETTINGS_FILE}")
    except (RemoteEntryNotFoundError, RepositoryNotFoundError):
        return False
    return lineage_of(Path(path).parent).get("run") == this_run()


def this_run() -> dict[str, Any]:
    """What tells one submission from another, also of the same plan: the job keeps its id when it is started again."""
    return {"plan_id": run_facts().get("plan_id"), "job_id": os.environ.get("JOB_ID")}


def require_gpu_where_paid() -> None:
    """Stop on a GPU flavor whose GPU torch cannot see: Unsloth would train on the CPU at the GPU's price.

    Stop, too, where the GPU is smaller than the one that was planned with: it would fail after minutes, not now.
    """
    import torch

    accelerator = os.environ.get("ACCELERATOR", "")
    if accelerator and not accelerator.startswith("cpu") and not torch.cuda.is_available():
        raise Stop(
            "no_gpu",
            f"This job is billed for {accelerator} and torch {torch.__version__} sees no GPU (driver: {driver_version() or 'none'}).",
            "Submit it again; if it happens twice, choose another flavor.",
        )
    if torch.cuda.is_available():
        found = sum(torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count()))
        require_planned_memory(found / 1e9, run_facts().get("vram_gb") or 0)


def require_planned_memory(found: float, planned: float) -> None:
    """Stop where a machine's GPUs have less memory than the plan assumed, in GB; a driver keeps some of it to itself."""
    if found < 0.9 * planned:
        raise Stop(
            "small_gpu",
            f"The GPU has {found:.1f} GB of memory, and the run was planned for {planned:.1f} GB.",
            "Submit it again; if it happens twice, choose another flavor.",
        )


def run_facts() -> dict[str, Any]:
    """What submit.py told of this run: plan_id, flavor, timeout_s, usd_per_minute, estimate; {} for any other start."""
    try:
        return json.loads(os.environ.get("UNSLOTH_JOBS_RUN", "{}"))
    except ValueError:
        return {}


def billed_since() -> float:
    """Epoch seconds at which this job began: what the local place states, or when uv began to install its libraries."""
    import psutil

    if started := run_facts().get("started"):
        return started
    process = psutil.Process()
    parent = process.parent()
    return (parent if parent and parent.name().startswith("uv") else process).create_time()


class Ending:
    """Whether the run must end before its last step: its timeout is near, or it was told to end (SIGTERM, Ctrl-C)."""

    MARGINS_S = 10, 300  # the least and the most; between them it is 5% of the timeout
    LOOKS_EVERY_S = 1.0
    SAME_SIGNAL_S = 2.0  # within which a second signal is the first one, passed on

    def __init__(self):
        self.reason = ""
        self.training = False
        self.told_at = 0.0
        timeout = run_facts().get("timeout_s")
        self.deadline = billed_since() + timeout if timeout else None
        least, most = self.MARGINS_S
        self.margin = min(max(0.05 * timeout, least), most) if timeout else 0.0

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.on_signal)

    def on_signal(self, number: int, _: Any) -> None:
        if self.reason == "cancelled":  # uv passes on what a whole group of processes was sent already
            if number == signal.SIGINT and time.monotonic() > self.told_at + self.SAME_SIGNAL_S:
                raise KeyboardInterrupt  # Ctrl-C once more: at once, whatever is lost
            return
        self.reason, self.told_at = "cancelled", time.monotonic()
        if not self.training:  # nothing new has been learned that could be saved
            raise KeyboardInterrupt  # unlike an Exception, nothing on the way to main takes it for a failure of its own

    def due(self, saving_s: float) -> bool:
        """Whether to stop now, when what comes before the next such question takes this many seconds."""
        if self.deadline and not self.reason and time.time() + saving_s + self.margin > self.deadline:
            self.reason = "deadline"
        return bool(self.reason)

    def wait(self, seconds: float) -> bool:
        """Wait; False where the machine is taken away before, or may be any moment."""
        until = time.time() + seconds
        if self.deadline and until > self.deadline:
            return False
        while self.reason != "cancelled" and (left := until - time.time()) > 0:
            time.sleep(min(left, self.LOOKS_EVERY_S))
        return self.reason != "cancelled"

    def require_none(self, state: Any, where: str) -> None:
        """Raises Stop where training ended early, unless nothing more was to be learned. What was learned is saved by then."""
        if state.global_step >= state.max_steps or self.reason == "early_stopped":
            return
        code = self.reason or "stopped"
        why = {"deadline": "Its timeout was near", "cancelled": "It was told to end"}.get(self.reason, "For no known reason")
        raise Stop(
            code,
            f"{why}: the run stopped after step {state.global_step} of {state.max_steps}. What it learned is in {where}.",
            "Submit the same command with --resume at its end: it goes on from there.",
        )


def cost_usd() -> float | None:
    """Dollars of this job up to now, at the price it was submitted at; None where that is unknown, or nothing."""
    price = run_facts().get("usd_per_minute")
    return round((time.time() - billed_since()) / 60 * price, 4) if price else None


def driver_version() -> str | None:
    """The NVIDIA driver's version, also where it is too old for torch to see the GPU; None without a driver."""
    asking = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(asking, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return said[0] if said else None


def hardware() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {"device": "cpu", "cpus": os.cpu_count(), "driver": driver_version()}
    device = torch.cuda.get_device_properties(0)
    return {
        "device": device.name,
        "gpus": torch.cuda.device_count(),
        "vram_gb": round(device.total_memory / 1e9, 1),
        "cuda": torch.version.cuda,
        "driver": driver_version(),
    }


def peak_gb() -> float | None:
    """GB of GPU memory that the tensors of this run took at most; None without a GPU."""
    import torch

    return round(torch.cuda.max_memory_allocated() / 1e9, 3) if torch.cuda.is_available() else None


def versions(backend: str) -> dict[str, str]:
    """Of the libraries that take part."""
    from importlib.metadata import version

    own = ("unsloth",) if backend == "unsloth" else ()
    return {name: version(name) for name in (*own, "torch", "transformers", "trl", "peft", "datasets")}


def linear_shapes(model: Any) -> dict[str, tuple[int, int]]:
    import torch

    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def expert_shapes(model: Any) -> list[tuple[int, int]]:
    """Of the experts' layers that are stacked in one tensor: an adapter reaches only linear layers that are modules."""
    return [
        (parameter.shape[1], math.prod(parameter.shape[2:]))
        for name, parameter in model.named_parameters()
        if EXPERTS.search(name) and parameter.ndim > 2
        for _ in range(parameter.shape[0])
    ]


def room_for(model: Any, settings: Settings) -> Callable[[int], bool]:
    """Whether this machine has the room to keep the activations of so many tokens."""
    import torch

    if not torch.cuda.is_available():  # main memory is plenty, and recomputing takes a third of the time
        return lambda tokens: settings.gradient_checkpointing != "offload"
    held, memory = torch.cuda.memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    linears, config = linear_shapes(model), model.config.to_dict()
    return lambda tokens: keeps_activations(settings, linears, config, tokens, held, memory)


def load_model(settings: Settings) -> Any:
    """The base model, in 4 or 16 bits. Raises Stop where Unsloth does not take it."""
    name, revision = settings.base_model, settings.base_model_revision or None
    if settings.backend == "trl":
        return load_plain_model(name, revision, settings.load_in_16bit)
    import torch
    from unsloth import FastLanguageModel

    try:
        model, _ = FastLanguageModel.from_pretrained(
            name,
            revision=revision,
            # Unsloth would load a copy of its own of some models, at another revision than the one that was checked.
            use_exact_model_name=True,
            max_seq_length=settings.max_seq_length,
            load_in_4bit=not settings.load_in_16bit,
            load_in_16bit=settings.load_in_16bit,
        )
    except (OSError, torch.OutOfMemoryError):  # a file, the network, the GPU: no other backend would do better
        raise
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        raise Stop(
            "unsloth_refused",
            f"Unsloth does not load {name}: {type(error).__name__}: {said[0][:300]}",
            "Add --backend trl: the same training without Unsloth, slower. Estimate it again first.",
        ) from error
    return model


def load_plain_model(name: str, revision: str | None, in_16bit: bool) -> Any:
    """The model as transformers loads it, in its own 16 bits or in bitsandbytes' 4."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    on_gpu = torch.cuda.is_available()
    dtype = (torch.bfloat16 if has_bf16() else torch.float16) if on_gpu else torch.float32
    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return AutoModelForCausalLM.from_pretrained(
        name,
        revision=revision,
        dtype=dtype,
        quantization_config=None if in_16bit else quantised,
        device_map={"": 0 if on_gpu else "cpu"},
    )


def has_bf16() -> bool:
    """Whether this GPU computes in bf16 itself."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def with_lora(model: Any, settings: Settings, pattern: str) -> Any:
    """The model with LoRA on each module whose name the regular expression matches."""
    options = {"r": settings.lora_r, "lora_alpha": settings.lora_alpha, "lora_dropout": 0, "bias": "none"}
    if settings.backend == "trl":
        from peft import LoraConfig, get_peft_model
        from transformers import set_seed

        set_seed(settings.seed)
        model = get_peft_model(model, LoraConfig(target_modules=pattern, task_type="CAUSAL_LM", **options))
        if settings.gradient_checkpointing == "offload":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return model
    from unsloth import FastLanguageModel

    return FastLanguageModel.get_peft_model(
        model,
        target_modules=pattern,
        use_gradient_checkpointing="unsloth" if settings.gradient_checkpointing == "offload" else False,
        random_state=settings.seed,
        **options,
    )


def in_full_precision(model: Any) -> None:
    """Make the adapter fp32 where a library made it less: small updates are lost in 16 bits."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def attach_adapter(model: Any, settings: Settings) -> Any:
    """The model with LoRA on each target. Raises Stop when the adapter reaches less than min_coverage of them."""
    linears = linear_shapes(model)
    everything = lora_size([*adaptable(linears).values(), *expert_shapes(model)])
    targets = lora_targets(linears, settings.target_modules)
    asked = {name: shape for name, shape in adaptable(linears).items() if leaf(name) in targets}
    model = with_lora(model, settings, target_pattern(targets))
    in_full_precision(model)
    prefix = "base_model.model."
    adapted = [name.removeprefix(prefix) for name, module in model.named_modules() if hasattr(module, "lora_A")]
    reached = [linears[name] for name in set(adapted) & linears.keys()]
    share, of_all = coverage(asked, adapted), lora_size(reached) / max(everything, 1)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    emit(
        "coverage",
        coverage=round(of_all, 4),  # as check.py's
        of_asked=round(share, 4),
        of_all_linear=round(of_all, 4),
        target_modules=targets,
        modules=len(adapted),
        trainable=trainable,
        expected_trainable=lora_size(asked.values(), settings.lora_r),
    )
    if share < settings.min_coverage:
        missing = sorted({leaf(name) for name in asked.keys() - set(adapted)})
        raise Stop(
            "low_coverage",
            f"The adapter reaches {share:.0%} of the modules asked for; without one: {missing}.",
            "Pass the modules it does reach with --target-modules, or lower --min-coverage knowingly.",
        )
    return model


# ---------------------------------------------------------------------------------------------------------------
# Batching: which rows an optimizer step holds, and how it is divided into forward passes.
#
# A step holds --batch-size × --gradient-accumulation rows on every machine: which ones depends on the rows, these two
# and the seed alone. What fits a GPU decides only in how many passes a step is computed, so that a run can move to
# another GPU, or go on in less memory, and its steps stay the same.

GROUPINGS = 4  # the rows of a step are others in each of so many epochs
MIXED = 0.25  # of its length, by which a row may trade places with others: chance, in what shares a step
LIKE_LENGTH = 50  # steps whose rows are sorted together where rows are not packed


def effective_batch_size(settings: Settings) -> int:
    return settings.batch_size * settings.gradient_accumulation


def group_evenly(lengths: list[int], size: int, chance: random.Random) -> list[list[int]]:
    """Rows by step, with as many tokens in each as can be: then all steps fill the same shape. A shorter step is last.

    Rows are cut into `size` layers by length, and each layer gives a row to each step: its longest to the emptiest.
    """
    order = list(range(len(lengths)))
    chance.shuffle(order)
    count = len(order) // size
    rest = order[count * size :]
    near = {row: lengths[row] * chance.uniform(1 - MIXED, 1 + MIXED) for row in order[: count * size]}
    layered = sorted(near, key=near.__getitem__, reverse=True)
    steps: list[list[int]] = [[] for _ in range(count)]
    held = [0] * count
    for layer in range(0, count * size, count or 1):
        longest_first = sorted(layered[layer : layer + count], key=lambda row: -lengths[row])
        for step, row in zip(sorted(range(count), key=held.__getitem__), longest_first, strict=True):
            steps[step].append(row)
            held[step] += lengths[row]
    return [*steps, rest] if rest else steps


def group_alike(lengths: list[int], size: int, chance: random.Random) -> list[list[int]]:
    """Rows by step, those of like length together: not packed, each is padded to the longest beside it."""
    order = list(range(len(lengths)))
    chance.shuffle(order)
    rest = order[len(order) // size * size :]
    steps = []
    for start in range(0, len(order) - len(rest), LIKE_LENGTH * size):
        part = sorted(order[start : min(start + LIKE_LENGTH * size, len(order) - len(rest))], key=lambda row: -lengths[row])
        steps += [part[at : at + size] for at in range(0, len(part), size)]
    return [*steps, rest] if rest else steps


class Steps:
    """The rows of each optimizer step, by epoch: a function of the rows' lengths, the effective batch size and the seed."""

    def __init__(self, lengths: Iterable[int], settings: Settings, packed: bool):
        self.lengths = list(lengths)  # a data set's column takes ten times as long to read from
        self.seed, size = settings.seed, effective_batch_size(settings)
        self.per_epoch = math.ceil(len(self.lengths) / size)
        epochs = math.ceil(settings.max_steps / self.per_epoch) if settings.max_steps else math.ceil(settings.num_epochs)
        group = group_evenly if packed else group_alike
        numbers = range(min(epochs, GROUPINGS))
        self.groupings = [group(self.lengths, size, random.Random(f"{self.seed} {number}")) for number in numbers]

    @functools.lru_cache(maxsize=2)  # noqa: B019  # it lives as long as the run
    def of_epoch(self, epoch: int) -> list[list[int]]:
        """In random order, but a step that is short of rows last."""
        *steps, last = self.groupings[epoch % len(self.groupings)]
        short = [last] if len(last) < len(steps[0] if steps else last) else []
        steps += [] if short else [last]
        random.Random(f"{self.seed} order {epoch}").shuffle(steps)
        return steps + short

    def tokens(self, number: int) -> int:
        """Of the step that comes after so many others."""
        epoch, at = divmod(number, self.per_epoch)
        return sum(self.lengths[row] for row in self.of_epoch(epoch)[at])

    def spread_length(self, sequences: int) -> int:
        """Tokens that a sequence must have, so that each step's rows go into so many."""
        steps = (step for grouping in self.groupings for step in grouping)
        return max(max(self.held(sequence) for sequence in spread(step, self.lengths, sequences)) for step in steps)

    def held(self, sequence: list[int]) -> int:
        return sum(self.lengths[row] for row in sequence)


def spread(rows: list[int], lengths: list[int], sequences: int) -> list[list[int]]:
    """Rows over so many sequences, the longest of which is short: the longest row first, each where least lies."""
    found: list[list[int]] = [[] for _ in range(sequences)]
    held = [(0, number) for number in range(sequences)]
    for row in sorted(rows, key=lambda row: -lengths[row]):
        tokens, number = held[0]
        found[number].append(row)
        heapq.heapreplace(held, (tokens + lengths[row], number))
    return found


TOKENS_AT_ONCE, FEWEST_TOKENS_AT_ONCE = 8192, 2048
LONGEST_PACKED = 16384
WIDER = 1.1  # times as many tokens in a pass as there should be are less than what another division costs


class Batching(NamedTuple):
    """A step's forward passes: accumulation of them, of micro sequences of length tokens, padding included.

    A sequence is one row or, packed, several. Other batchings of a step compute the same from the same rows.
    """

    micro: int
    accumulation: int
    length: int

    @property
    def tokens(self) -> int:
        """Of a forward pass."""
        return self.micro * self.length


def batchings(settings: Settings, length_for: Callable[[int], int], packed: bool, fewest: int = 1) -> Iterable[Batching]:
    """Ways to divide a step, largest passes first. length_for(n): of the sequences, where a step is packed into n."""
    rows = effective_batch_size(settings)
    if not packed:
        micros = (micro for micro in range(sequences_at_once(settings), 0, -1) if rows % micro == 0)
        yield from (Batching(micro, rows // micro, settings.max_seq_length) for micro in micros)
        return
    shortest = math.inf
    for passes in range(fewest, rows + 1):
        if (length := length_for(passes)) < shortest:
            shortest = length
            yield Batching(1, passes, length) if settings.backend == "unsloth" else side_by_side(passes, length_for, rows)


def side_by_side(passes: int, length_for: Callable[[int], int], rows: int) -> Batching:
    """Each pass as several shorter sequences, where that costs little: plain attention takes the square of their length."""
    micro, line = 1, length_for(passes)
    while 2 * micro * passes <= rows and 2 * micro * length_for(2 * micro * passes) <= WIDER * line:
        micro *= 2
    return Batching(micro, passes, length_for(micro * passes))


def sequences_at_once(settings: Settings) -> int:
    """Beyond TOKENS_AT_ONCE no GPU gets faster, and the mask of a packed pass grows with the square of its tokens."""
    return min(settings.batch_size, max(TOKENS_AT_ONCE // settings.max_seq_length, 1))


def choose_batching(
    settings: Settings, length_for: Callable[[int], int], keeps: Callable[[int], bool], packed: bool
) -> tuple[Batching, bool]:
    """How a step is divided, and whether its activations are kept; keeps(tokens) says whether there is room for that.

    Keeping them saves a third of the arithmetic, so smaller passes are taken for it, but none too small for a GPU.
    """
    most = WIDER * sequences_at_once(settings) * settings.max_seq_length  # a little more is better than a pass more
    fewest = math.ceil(length_for(1) / most) if packed else 1
    largest = None
    for batching in batchings(settings, length_for, packed, fewest):
        smallest = batching
        if batching.tokens > most:
            continue
        if largest and batching.tokens < FEWEST_TOKENS_AT_ONCE:
            break
        if keeps(batching.tokens):
            return batching, True
        largest = largest or batching
    return largest or smallest, False


def lighter(batching: Batching, kept: bool, ways: Iterable[Batching], error: Exception) -> tuple[Batching, bool]:
    """The same step in less memory: in smaller passes while a GPU computes them well, then with its activations recomputed.

    Raises Stop where both are done already.
    """
    smaller = next((way for way in ways if way.tokens < batching.tokens), None)
    if kept and (smaller is None or smaller.tokens < FEWEST_TOKENS_AT_ONCE):
        said = "Going on with its activations recomputed (gradient checkpointing)"
        smaller, kept = batching, False
    elif smaller:
        said = (
            f"Going on with passes of {smaller.tokens:,} tokens: gradient accumulation {batching.accumulation} → "
            f"{smaller.accumulation}, the same effective batch size"
        )
    else:
        raise Stop(
            "out_of_vram",
            f"The GPU's memory does not hold one sequence at a time: {str(error).splitlines()[0]}",
            "Choose a flavor with more GPU memory (estimate.py lists them), or a smaller --max-seq-length.",
        ) from error
    message = f"Out of GPU memory in a forward pass of {batching.tokens:,} tokens. {said}."
    emit("warning", code="out_of_vram", message=message)
    return smaller, kept


class Passes:
    """The forward passes of an epoch, each a list of sequences, and these lists of row numbers: a batch sampler of torch's."""

    def __init__(self, steps: Steps, batching: Batching, packed: bool):
        self.steps, self.batching, self.packed, self.epoch = steps, batching, packed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[list[int]]]:
        for step in self.steps.of_epoch(self.epoch):
            yield from self.of_step(step)

    def __len__(self) -> int:
        *steps, last = self.steps.of_epoch(0)
        return len(steps) * self.batching.accumulation + len(self.of_step(last))

    def of_step(self, rows: list[int]) -> list[list[list[int]]]:
        micro, passes, _ = self.batching
        sequences = spread(rows, self.steps.lengths, micro * passes) if self.packed else [[row] for row in rows]
        return [sequences[at : at + micro] for at in range(0, len(sequences), micro)]

    def short_length(self) -> int:
        """Of the sequences of most passes, where that is much less than all need: a few long rows need not pad the rest."""
        held = sorted(
            max(map(self.steps.held, sequences)) for step in self.steps.groupings[0] for sequences in self.of_step(step)
        )
        usual = held[int(0.95 * (len(held) - 1))]
        return rounded(usual) if usual < 0.75 * self.batching.length else self.batching.length


def rounded(length: int) -> int:
    """To what a GPU's kernels like."""
    return math.ceil(length / 64) * 64


# ---------------------------------------------------------------------------------------------------------------
# Packing: several rows share a sequence, so that little is spent on padding and each forward pass has the same shape (a
# new one costs a GPU seconds). Rows must not see each other: attention follows position_ids that start anew,
# convolutions by seq_idx, and rows_leak finds the models that listen to neither.


def pack(lengths: Iterable[int], size: int) -> list[list[int]]:
    """Row numbers by sequence, so that each holds at most size tokens: the longest row first, each where least is left.

    Of held-out rows: those of a training step are spread over its sequences.
    """
    lengths = list(lengths)  # a data set's column takes ten times as long to look into
    sequences: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, number of the sequence), ascending
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        at = bisect.bisect_left(room, (lengths[row], -1))
        left, number = room.pop(at) if at < len(room) else (size, len(sequences))
        if number == len(sequences):
            sequences.append([])
        sequences[number].append(row)
        bisect.insort(room, (left - lengths[row], number))
    return sequences


class Collator:
    """Sequences, each a list of row numbers, as micro × length tokens: of the first of these lengths that holds them.

    Unsloth takes them in one line. transformers' own attention over a line would take a mask of its square: it gets
    them side by side.
    """

    def __init__(self, tokens: Any, micro: int, lengths: Iterable[int], filler: int, side_by_side: bool = False):
        self.tokens = tokens.with_format("numpy")  # lists would take ten times as long, while the GPU waits
        self.micro, self.lengths, self.filler, self.side_by_side = micro, sorted(set(lengths)), filler, side_by_side

    def __call__(self, sequences: list[list[int]]) -> dict[str, Any]:
        found = [self.rows(numbers) for numbers in sequences]
        longest = max(sum(len(ids) for ids, _ in rows) for rows in found)
        size = next(length for length in self.lengths if length >= longest)
        filled = [row for rows in found for row in self.filled(rows, size)]
        missing = self.micro - len(found)  # in an evaluation's last batch
        return as_batch(filled + missing * [self.fill(size)], size if self.side_by_side else None)

    def rows(self, numbers: list[int]) -> list[tuple[Any, Any]]:
        if not numbers:
            return []
        columns = self.tokens[numbers]
        return list(zip(columns["input_ids"], columns["labels"], strict=True))

    def filled(self, rows: list[tuple[Any, Any]], size: int) -> list[tuple[Any, Any]]:
        left = size - sum(len(ids) for ids, _ in rows)
        return [*rows, self.fill(left)] if left else rows

    def fill(self, length: int) -> tuple[list[int], list[int]]:
        """A row of its own, so that the lengths add up; nothing of it is learned."""
        return [self.filler] * length, [IGNORE] * length


def as_batch(rows: list[tuple[list[int], list[int]]], width: int | None = None) -> dict[str, Any]:
    """Rows (input_ids, labels) one after the other, with all that tells a model where each begins.

    Shapes: (1, tokens), with the lengths of the rows for Unsloth's attention; or (sequences, width) without them.
    """
    import numpy as np
    import torch

    lengths = np.array([len(ids) for ids, _ in rows], dtype=np.int32)
    ids, labels = (np.concatenate(column).astype(np.int64) for column in zip(*rows, strict=True))
    begins = np.repeat(np.cumsum(lengths) - lengths, lengths)
    labels[begins == np.arange(len(ids))] = IGNORE  # predicted from nothing, or from the row before it
    columns = {
        "input_ids": ids,
        "labels": labels,
        "position_ids": np.arange(len(ids)) - begins,
        "seq_idx": np.repeat(np.arange(len(rows), dtype=np.int32), lengths),
    }
    batch = {name: torch.from_numpy(values).view(-1, width or len(ids)) for name, values in columns.items()}
    return batch if width else batch | {"packed_seq_lengths": torch.from_numpy(lengths)}


def keep_rows_apart(model: Any) -> None:
    """Give LFM2's short convolutions a kernel that stops at row borders. Call it once the model is loaded.

    transformers' own falls back to a plain convolution, which ignores seq_idx and is compiled anew for each length.
    """
    if "unsloth" in sys.modules:
        try:  # attention over each row alone; without it, it is as exact over a mask of tokens × tokens
            from unsloth.utils.hf_packed_attention import enable_hf_packed_attention

            enable_hf_packed_attention()
        except ImportError as error:
            if next(model.parameters()).is_cuda:  # Unsloth has it for GPUs only
                message = f"Packed rows take more memory: Unsloth's attention over each row alone is missing ({error})."
                emit("warning", code="packed_attention", message=message)
    for kind in {type(module) for module in model.modules()}:
        forward = inspect.unwrap(kind.forward)
        if "seq_idx" in inspect.signature(forward).parameters and "causal_conv1d_fn" in forward.__globals__:
            forward.__globals__["causal_conv1d_fn"] = row_convolution


def row_convolution(hidden_states, weight, bias=None, activation=None, seq_idx=None, **_):
    """causal_conv1d_fn of the causal_conv1d package: (batch, channels, tokens) with weight (channels, taps)."""
    import torch.nn.functional as F

    taps, tokens = weight.shape[-1], hidden_states.shape[-1]
    result = hidden_states * weight[:, -1, None]
    for back in range(1, taps):
        earlier = F.pad(hidden_states, (back, 0))[..., :tokens]
        if seq_idx is not None:
            earlier = earlier * (F.pad(seq_idx, (back, 0), value=-1)[..., :tokens] == seq_idx)[:, None]
        result = result + earlier * weight[:, -1 - back, None]
    result = result if bias is None else result + bias[:, None]
    return result if activation is None else F.silu(result)


def rows_leak(model: Any, size: int, width: int | None = None) -> bool:
    """Whether a row's loss changes with the row that is packed before it: then this model cannot be trained packed.

    width: as of as_batch, whose batches the model will be given.
    """
    import torch

    half, vocabulary = size // 2, model.get_input_embeddings().num_embeddings

    def loss(step: int) -> float:
        before, row = ([(factor * place) % (vocabulary - 1) + 1 for place in range(half)] for factor in (step, 5))
        # Only a row's first tokens are near enough to its border to see far over it.
        learned = row[:8] + [IGNORE] * (half - 8)
        batch = as_batch([(before, [IGNORE] * half), (row, learned)] * (2 if width else 1), width)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # not worth half a minute of compilation
            return model(**{name: value.to(model.device) for name, value in batch.items()}, use_cache=False).loss.item()

    one, other = loss(3), loss(7)
    return not abs(one - other) <= 1e-5 * abs(one)


def wants_packing(settings: Settings) -> bool:
    return settings.packing and settings.max_seq_length <= LONGEST_PACKED


def may_pack(settings: Settings, config: Mapping[str, Any]) -> bool:
    """Whether rows will be packed, as far as config.json tells: linear attention carries its state over their borders."""
    kinds = str((config.get("text_config") or config).get("layer_types") or "")
    return wants_packing(settings) and "linear" not in kinds and "mamba" not in kinds


def can_pack(model: Any, settings: Settings) -> bool:
    """Whether rows stay apart in this model when they are packed; said, where not."""
    if not wants_packing(settings):
        return False
    import torch

    leak: bool | str = "it does not fit in the GPU's memory"
    for size in {settings.max_seq_length // part // 2 * 2: None for part in (1, 4, 16)}:
        try:
            leak = rows_leak(model, size, size if settings.backend == "trl" else None)
        except torch.OutOfMemoryError:  # the logits of this one pass: fewer tokens tell as much
            continue
        except Exception as error:  # a forward that does not take a packed batch at all
            leak = f"{type(error).__name__}: {error}"
        break
    if leak:
        why = "rows would see each other in this model" if leak is True else f"packed rows cannot be tried: {leak}"
        emit("warning", code="not_packed", message=f"Each row is trained alone: {why}.")
    return not leak


@dataclass
class Pace:
    """Seconds and tokens of the optimizer steps so far. The first ones compile for a minute or so, and are not timed."""

    WARMUP: ClassVar[int] = 3
    steps: int = 0
    tokens: Any = 0  # numbers or, so that the GPU need not be waited for, tensors
    timed_steps: int = 0
    timed_tokens: Any = 0
    since: float = 0.0  # when the steps that are not timed yet began; 0 between them
    open_steps: int = 0  # and what these are
    open_tokens: Any = 0
    first_step_s: float = 0.0
    train_s: float = 0.0
    evaluations: int = 0
    evaluation_s: float = 0.0  # of the newest one
    saving_s: float = 0.0  # of the newest checkpoint, its push included
    checkpoint: Path | None = None

    def step_begins(self) -> None:
        self.since = self.since or time.monotonic()

    def step_holds(self, tokens: Any) -> None:
        self.step_tokens = tokens

    def step_ends(self, pausing: bool) -> None:
        """pausing: whether something else is done before the next step, such as a log line or an evaluation.

        Else the GPU is not waited for, so that the next step is made ready while it works.
        """
        import torch

        self.steps += 1
        self.tokens += self.step_tokens
        timed = self.steps > self.WARMUP
        if timed:
            self.open_steps, self.open_tokens = self.open_steps + 1, self.open_tokens + self.step_tokens
        if timed and not pausing:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds, self.since = time.monotonic() - self.since, 0.0
        if self.steps == 1:
            self.first_step_s = seconds
        if timed:
            self.train_s += seconds
            self.timed_steps, self.timed_tokens = self.timed_steps + self.open_steps, self.timed_tokens + self.open_tokens
            self.open_steps, self.open_tokens = 0, 0

    @property
    def step_s(self) -> float | None:
        """Seconds of a timed step."""
        return self.train_s / self.timed_steps if self.timed_steps else None

    def figures(self) -> dict[str, Any]:
        return {
            "tokens": round(float(self.tokens)),
            "timed_tokens": round(float(self.timed_tokens)),
            "first_step_s": round(self.first_step_s, 2),
            "train_s": round(self.train_s, 2),
            "evaluations": self.evaluations,
            "evaluation_s": round(self.evaluation_s, 2),
        }


@dataclass
class Best:
    """The adapter of the lowest held-out loss, which is the result of a run with --early-stopping.

    It is kept in memory, so that it needs no checkpoint at each evaluation: a resumed run looks for it anew.
    """

    patience: int = 0  # evaluations in which the loss may fail to fall; 0: the last adapter is the result
    loss: float = math.inf  # nats per token
    step: int = 0
    weights: dict[str, Any] = field(default_factory=dict)

    def look(self, model: Any, state: Any, loss: float) -> bool:
        """Take the adapter where it is the best so far; whether the loss has not fallen for too long."""
        if loss < self.loss:
            trained = ((name, value) for name, value in model.named_parameters() if value.requires_grad)
            self.weights = {name: value.detach().cpu().clone() for name, value in trained}
            self.loss, self.step = loss, state.global_step
        # Counted by step, since after running out of memory some evaluations are made a second time.
        return sum("eval_loss" in entry and entry["step"] > self.step for entry in state.log_history) >= self.patience

    def restore(self, model: Any) -> None:
        import torch

        with torch.no_grad():
            for name, value in model.named_parameters():
                if name in self.weights:
                    value.copy_(self.weights[name])


def perplexity(loss: float) -> float:
    """e to a loss in nats per token: among how many equally likely tokens the model seems to choose."""
    return math.exp(min(loss, 700))  # beyond that, no float holds it


def emit_early_stop(state: Any, pace: Pace, best: Best) -> None:
    left = state.max_steps - state.global_step
    seconds = None if pace.step_s is None else left * pace.step_s
    price = run_facts().get("usd_per_minute")
    emit(
        "early_stopped",
        step=state.global_step,
        of=state.max_steps,
        kept_step=best.step,
        eval_loss=round(best.loss, 4),
        steps_saved=left,
        seconds_saved=None if seconds is None else round(seconds, 1),
        usd_saved=round(seconds / 60 * price, 4) if seconds is not None and price else None,
    )


def progress_callback(settings: Settings, api: Any, pace: Pace, ending: Ending, best: Best, lineage: Mapping[str, Any]) -> Any:
    """A trainer callback that prints events and, with a repository, keeps the newest checkpoint off this machine."""
    import torch
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.start = time.monotonic()
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()  # loading takes more for a moment, and is over

        def on_step_end(self, args, state, control, **kwargs):
            if best.patience and state.global_step == state.max_steps:
                control.should_evaluate = True  # the last adapter may be the best
            saving_s = pace.saving_s if pace.checkpoint else ending.margin  # how long the first push takes is not known yet
            if ending.due(2 * saving_s + pace.evaluation_s + (pace.step_s or 0)):
                control.should_save, control.should_evaluate, control.should_training_stop = True, False, True
            control.should_log |= control.should_save  # logging, which comes first, keeps what is no number out of checkpoints
            pace.step_ends(control.should_log or control.should_evaluate)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" not in (logs or {}):
                return
            if not math.isfinite(logs["loss"]):
                raise Stop(
                    "loss_not_finite",
                    f"The loss is {logs['loss']} at step {state.global_step}: nothing can be learned from here on.",
                    "Lower --learning-rate to a third. On a T4 choose l4x1 instead: many models overflow without bf16.",
                )
            eta = None if pace.step_s is None else pace.step_s * (state.max_steps - state.global_step)
            emit(
                "progress",
                step=state.global_step,
                total_steps=state.max_steps,
                loss=round(float(logs["loss"]), 4),
                learning_rate=logs.get("learning_rate"),
                epoch=round(state.epoch or 0, 3),
                tokens=int(pace.tokens),
                elapsed_s=round(time.monotonic() - self.start, 1),
                eta_s=None if eta is None else round(eta, 1),
            )

        def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
            pace.evaluations += 1
            pace.evaluation_s, loss = metrics["eval_runtime"], float(metrics["eval_loss"])
            emit("eval", step=state.global_step, eval_loss=round(loss, 4), perplexity=round(perplexity(loss), 4))
            learning = state.global_step > 0  # the evaluation before training is the base model's
            if learning and best.patience and best.look(model, state, loss) and state.global_step < state.max_steps:
                control.should_training_stop, ending.reason = True, "early_stopped"
                emit_early_stop(state, pace, best)

        def on_save(self, args, state, control, **kwargs):
            began = time.monotonic()
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            kept = asdict(settings) | {LINEAGE: lineage}
            (folder / SETTINGS_FILE).write_text(json.dumps(kept, indent=1), encoding="utf-8")
            message = f"Checkpoint at step {state.global_step}"
            pushed = api is not None and push_folder(api, settings, folder, message, path_in_repo=LAST_CHECKPOINT) is None
            pace.checkpoint, pace.saving_s = folder, time.monotonic() - began
            emit("checkpoint", step=state.global_step, path=str(folder), pushed=pushed)

    return Progress()


def push_folder(api: Any, settings: Settings, folder: Path, message: str, **options: Any) -> Exception | None:
    """None when the folder has reached the Hub, else what went wrong, as a warning: training, and what is on disk, goes on."""
    from huggingface_hub.errors import RepositoryNotFoundError

    def upload() -> None:
        api.upload_folder(repo_id=settings.output_repo, folder_path=folder, commit_message=message, **options)

    try:
        try:
            upload()
        except RepositoryNotFoundError:  # deleted meanwhile: a result that was paid for is kept all the same
            api.create_repo(settings.output_repo, private=not settings.public, exist_ok=True)
            upload()
    except Exception as error:  # whatever went wrong with the network must not end a paid run
        emit("warning", code="push_failed", message=f"{message}: {error}")
        return error
    return None


def is_refused(error: Exception) -> bool:
    """Whether the Hub said no, and will say so again; a fault in passing is anything else."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return 400 <= status < 500 and status not in (408, 409, 412, 429)


def trackio_callback() -> Any:
    """The trainer's own Trackio callback, guarded: whatever fails in it costs the live curves, not the run.

    The run in Trackio stays open when training ends, for what is measured then; `close` ends it.
    """
    from transformers import TrainerCallback
    from transformers.integrations import TrackioCallback

    class Guarded(TrainerCallback):
        trackio = TrackioCallback()
        failed = False

        def attempt(self, action: Any, *args: Any, **kwargs: Any) -> None:
            if self.failed:
                return
            try:
                action(*args, **kwargs)
            except Exception as error:
                self.failed = True
                emit("warning", code="trackio_failed", message=f"no more live curves: {type(error).__name__}: {error}")

        def on_train_begin(self, *args, **kwargs):
            self.attempt(self.trackio.on_train_begin, *args, **kwargs)

        def on_log(self, *args, **kwargs):
            self.attempt(self.trackio.on_log, *args, **kwargs)

        def close(self, losses: Mapping[str, float | None], answers: list[dict[str, str]]) -> None:
            self.attempt(self.log_result, losses, answers)

        def log_result(self, losses, answers):
            import trackio

            measured = {name.replace("_", "/"): value for name, value in losses.items() if value is not None}
            trackio.log(measured | ({"answers": trackio.Table(data=answers)} if answers else {}))
            trackio.finish()

    return Guarded()


def run_name(settings: Settings) -> str:
    """The run's name, and its repository's where none is given: model and data set, as the Hub allows names."""
    dataset = settings.dataset.removesuffix(Path(settings.dataset).suffix if Path(settings.dataset).is_file() else "")
    parts = (Path(settings.base_model).name, Path(dataset).name)
    return settings.run_name or re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(parts)).strip("-.")[:90]


def build_trainer(
    model: Any,
    tokenizer: Any,
    train: Any,
    held_out: Any,
    settings: Settings,
    steps: Steps | None = None,
    batching: Batching | None = None,
    packed: bool = False,
    api: Any = None,
    ending: Ending | None = None,
    best: Best | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> Any:
    """TRL's trainer over rows as tokens (columns input_ids, labels, length), each by itself or packed."""
    import torch
    import transformers
    from torch.utils.data import DataLoader
    from trl import SFTConfig, SFTTrainer

    pace, plain = Pace(), settings.backend == "trl"
    order = steps or Steps(train["length"], settings, packed)
    division = batching or choose_batching(settings, order.spread_length, lambda tokens: True, packed)[0]
    passes = Passes(order, division, packed)
    filler, collator = tokenizer.pad_token_id, None
    if packed:
        collator = Collator(train, division.micro, (passes.short_length(), division.length), filler, plain)

    class Trainer(SFTTrainer):
        eval_dataset: Any

        def get_train_dataloader(self):
            rows = train.select_columns(["input_ids", "labels"])
            made = collator or (lambda sequences: self.data_collator([rows[row] for [row] in sequences]))
            loader = DataLoader(RowNumbers(len(train)), batch_sampler=passes, collate_fn=made, pin_memory=on_gpu)
            return self.accelerator.prepare(loader)

        def get_batch_samples(self, *args, **kwargs):
            pace.step_begins()
            batches, items = super().get_batch_samples(*args, **kwargs)
            pace.step_holds(order.tokens(self.state.global_step))
            return batches, items

        def evaluate(self, *args, **kwargs):
            """The held-out loss; {} and a warning where it cannot be measured, since training is worth more."""
            try:
                metrics = {} if self.eval_dataset is None else self.measure()
            except Exception as error:
                self.eval_dataset, metrics = None, {}
                message = f"The held-out rows are not evaluated any more: {type(error).__name__}: {error}"
                emit("warning", code="evaluation_failed", message=message)
            if metrics:
                self.log(metrics)
                self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

        def measure(self):
            """The mean loss of a learned token of the held-out rows, however they lie in batches."""
            began = time.monotonic()
            try:
                mean = self.mean_loss(self.held_out_batches())
            except torch.OutOfMemoryError:
                free_memory()
                mean = self.mean_loss(self.held_out_batches(alone=True))
            return {"eval_loss": mean, "eval_perplexity": perplexity(mean), "eval_runtime": time.monotonic() - began}

        def mean_loss(self, batches):
            total, learned = 0.0, 0
            self.model.eval()
            for batch in map(self._prepare_inputs, batches):
                with torch.compiler.set_stance("force_eager"):  # there is too little to do to compile for it
                    loss, *_ = self.prediction_step(self.model, batch, prediction_loss_only=True)
                here = learned_tokens(batch["labels"])
                total, learned = total + loss.item() * here, learned + here
            return total / learned

        def held_out_batches(self, alone=False):
            """In the shape that training takes too; one row each, which is where a run dies of memory last, otherwise."""
            if not packed:
                return self.get_eval_dataloader()
            length = max(division.length, *held_out["length"])
            micro, lengths = (1, held_out["length"]) if alone else (division.micro, [length])
            collate = Collator(held_out, micro, lengths, filler, plain)
            sequences = [[row] for row in range(len(held_out))] if alone else pack(held_out["length"], length)
            return (collate(sequences[at : at + micro]) for at in range(0, len(sequences), micro))

    on_gpu, bf16 = torch.cuda.is_available(), has_bf16()
    if plain and not on_gpu:
        Trainer.compute_loss = transformers.Trainer.compute_loss  # TRL's own is a kernel for GPUs
    config = SFTConfig(
        output_dir=str(Path(settings.save_local) / "checkpoints"),
        num_train_epochs=settings.num_epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=division.micro,
        gradient_accumulation_steps=division.accumulation,
        learning_rate=settings.learning_rate,
        warmup_steps=0.03,
        # Its states are small beside all else, and one kernel updates them; in 8 bits each matrix would need its own.
        optim="adamw_torch_fused",
        bf16=bf16,
        fp16=on_gpu and not bf16,
        pad_to_multiple_of=64 if on_gpu else 8,
        remove_unused_columns=not packed,
        per_device_eval_batch_size=1,  # evaluation is where runs die of memory
        eval_strategy="steps" if held_out else "no",
        eval_steps=0.1 if settings.early_stopping else 0.25,  # to stop early is to look often
        save_steps=settings.save_steps if settings.save_steps < 1 else int(settings.save_steps),
        save_total_limit=2,
        logging_steps=0.005,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it waits for the GPU after each forward pass; progress_callback stops at NaN
        disable_tqdm=True,
        report_to="none",  # Trackio is told by a callback of its own
        project="unsloth-jobs",
        run_name=run_name(settings),
        trackio_space_id=settings.trackio_space or None,
        trackio_static_space_id=False,
        hub_private_repo=True,
        max_length=settings.max_seq_length,
        # Rows arrive as tokens and labels: nothing after this point may change what is learned.
        dataset_kwargs={"skip_prepare_dataset": True},
        seed=settings.seed,
        # TRL's default is True, which on a CPU turns on what was left off where the adapter was attached.
        gradient_checkpointing=settings.gradient_checkpointing != "off" and not plain,
    )
    curves = trackio_callback()
    trainer = Trainer(
        model=model,
        processing_class=tokenizer,
        args=config,
        data_collator=collator,
        train_dataset=train,
        eval_dataset=held_out,
        callbacks=[progress_callback(settings, api, pace, ending or Ending(), best or Best(), lineage or {}), curves],
    )
    in_full_precision(model)  # TRL makes it bf16
    trainer.pace, trainer.batching, trainer.curves = pace, division, curves
    trainer.remove_callback(transformers.PrinterCallback)  # the events say it
    return trainer


class RowNumbers:
    """A data set for torch whose items are what its sampler asks for: the collator reads the rows themselves."""

    def __init__(self, rows: int):
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, sequence: list[int]) -> list[int]:
        return sequence


def free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def learned_tokens(labels: Any) -> int:
    """How many tokens of a row, or of a batch of them, are learned: all that have a label but the first."""
    import torch

    return int((torch.as_tensor(labels)[..., 1:] != IGNORE).sum())


def require_masked_batch(trainer: Any, supervised_fraction: float) -> None:
    """Stop when the batch that the trainer really builds does not carry the labels that were computed."""
    batch = next(iter(trainer.get_train_dataloader()))
    learned, present = int((batch["labels"] != IGNORE).sum()), int(batch.get("attention_mask", batch["labels"]).numel())
    if learned == 0 or (supervised_fraction < 1 and learned == present):
        raise Stop(
            "masks_lost",
            f"The trainer's batch has {learned} supervised tokens of {present}, where {supervised_fraction:.0%} were computed.",
            "Use the versions that this script pins: another trainer masks in another way.",
        )


# Settings that decide what a step learns from which rows: a run can only be resumed with those that it began with.
RESUME_MUST_MATCH = (
    "base_model", "load_in_16bit", "backend", "dataset_config", "dataset_split",
    "prompt_column", "completion_column", "num_samples", "eval_split", "max_eval_rows", "num_epochs", "max_steps",
    "batch_size", "gradient_accumulation", "learning_rate", "max_seq_length", "packing", "lora_r", "lora_alpha",
    "target_modules", "seed",
)  # fmt: skip
METHOD, LINEAGE = "sft", "lineage"  # how this script trains; the key beside the settings that are stored with a checkpoint
LINEAGE_NAMES = {
    "method": "the method", "data": "the rows", "model": "the model's files", "packed": "sequence packing",
}  # fmt: skip


def lineage(settings: Settings, rows: Any, packed: bool) -> dict[str, Any]:
    """What a checkpoint comes from, beside the settings: stored with it, since names say nothing of contents."""
    return {
        "method": METHOD,
        "data": rows_digest(rows),
        "model": model_digest(settings),
        "packed": packed,
        "data_revision": SAID.get("data", {}).get("revision"),
        "effective_batch_size": effective_batch_size(settings),
        "run": this_run(),
        "versions": SAID.get("plan", {}).get("versions"),
    }


def rows_digest(rows: Any) -> str:
    """sha256 of the rows as they are trained on: of tokens and labels, in their order."""
    import numpy as np

    digest = hashlib.sha256()
    for batch in rows.select_columns(["input_ids", "labels"]).with_format("numpy").iter(1000):
        for column in ("input_ids", "labels"):
            for values in batch[column]:
                digest.update(len(values).to_bytes(4, "little") + values.astype(np.int32).tobytes())
    return "sha256:" + digest.hexdigest()


def model_digest(settings: Settings) -> str | None:
    """The model's commit, or of a local folder the names and sizes of its files and its config.json."""
    folder = Path(settings.base_model)
    if not folder.is_dir():
        return settings.base_model_revision or None
    files = sorted((path.name, path.stat().st_size) for path in folder.iterdir() if path.is_file())
    weights = [file for file in files if file[0].endswith((".safetensors", ".bin"))]
    return "sha256:" + hashlib.sha256(repr(weights).encode() + (folder / "config.json").read_bytes()).hexdigest()


def stored(checkpoint: Path) -> dict[str, Any]:
    """The settings that a checkpoint was made with, and its lineage."""
    try:
        found = json.loads((checkpoint / SETTINGS_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def lineage_of(checkpoint: Path) -> dict[str, Any]:
    found = stored(checkpoint).get(LINEAGE)
    return found if isinstance(found, dict) else {}


def newest_checkpoint(settings: Settings) -> Path | None:
    """The checkpoint with the most steps on this machine; None where there is none."""
    folders = (Path(settings.save_local) / "checkpoints").glob("checkpoint-*")
    whole = [folder for folder in folders if (folder / "trainer_state.json").is_file() and (folder / SETTINGS_FILE).is_file()]
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def checkpoint_to_resume(settings: Settings, api: Any, own: Mapping[str, Any]) -> Path | None:
    """The newest checkpoint here or, after a move to another machine, in the repository. Raises Stop where it is another run's."""
    if not settings.resume:
        set_aside(Path(settings.save_local) / "checkpoints")
        return None
    found = newest_checkpoint(settings) or (fetch_checkpoint(settings, api) if api else None)
    if found is not None:
        require_same_run(found, settings, own)
    return found


def require_same_run(checkpoint: Path, settings: Settings, own: Mapping[str, Any]) -> None:
    """Raises Stop unless a checkpoint was made from the same rows and model, with the settings that decide its steps."""
    began, theirs = stored(checkpoint), lineage_of(checkpoint)
    anew = "to train from the beginning, leave --resume out"
    if not theirs:
        message = f"The checkpoint {checkpoint.name} does not say what it was trained on."
        raise Stop("resume_mismatch", message, f"{anew[0].upper()}{anew[1:]}.")
    if changed := [name for name in RESUME_MUST_MATCH if began.get(name) != getattr(settings, name)]:
        flags = " ".join(as_flag(name, began[name]) for name in changed if name in began)
        raise Stop(
            "resume_mismatch",
            f"The checkpoint was trained with other settings ({', '.join(changed)}), so it cannot be resumed.",
            f"Pass what it began with: {flags}. Or, {anew}." if flags else f"{anew[0].upper()}{anew[1:]}.",
        )
    if changed := [title for name, title in LINEAGE_NAMES.items() if theirs.get(name) != own[name]]:
        data = [as_flag("dataset", began.get("dataset")), as_flag("dataset_revision", theirs.get("data_revision"))]
        raise Stop(
            "resume_mismatch",
            f"The checkpoint is another run's: {' and '.join(changed)} differ, so it cannot be resumed.",
            f"It began with {' '.join(data[: 2 if theirs.get('data_revision') else 1])}. Or, {anew}.",
        )


def as_flag(name: str, value: Any) -> str:
    """A setting as it is typed."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {shlex.quote(str(value))}"


def set_aside(folder: Path) -> None:
    """Rename the checkpoints of an earlier run: the trainer would take those with more steps for newer than its own."""
    if folder.is_dir():
        names = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(1))
        kept = folder.rename(next(name for name in names if not name.exists()))
        emit("warning", code="checkpoints_kept", message=f"Checkpoints of an earlier run were there; they are kept in {kept}.")


def fetch_checkpoint(settings: Settings, api: Any) -> Path | None:
    """The repository's last-checkpoint, downloaded under the name that the trainer would have given it."""
    from httpx import HTTPError
    from huggingface_hub.errors import LocalEntryNotFoundError

    folder = Path(settings.save_local) / "checkpoints"
    try:
        api.snapshot_download(settings.output_repo, allow_patterns=f"{LAST_CHECKPOINT}/*", local_dir=folder)
    except (HTTPError, LocalEntryNotFoundError) as error:
        raise Stop("resume_failed", f"The checkpoint cannot be downloaded: {error}", "Try again in a minute.") from error
    fetched = folder / LAST_CHECKPOINT
    if not (fetched / "trainer_state.json").is_file():
        return None
    step = json.loads((fetched / "trainer_state.json").read_text("utf-8"))["global_step"]
    return fetched.rename(folder / f"checkpoint-{step}")


def at_its_end(trainer: Any, checkpoint: Path) -> bool:
    """Whether the checkpoint is of the last step; then it is loaded here, since train() would make one step more."""
    from transformers import TrainerState

    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if state.global_step < state.max_steps:
        return False
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = state
    return True


def fit(
    trainer: Any, make_trainer: Any, checkpoint: Path | None, ending: Ending, kept: bool, ways: Callable[[], Iterable[Batching]]
) -> tuple[Any, float | None]:
    """Train, from a checkpoint where there is one: the trainer that came to the end, and the base model's loss before.

    Out of GPU memory a step is computed in smaller passes, then with its activations recomputed; it still sees the same
    rows, and training goes on from the newest checkpoint. Raises Stop where one row does not fit.
    """
    import torch

    trainable = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
    first = {name: value.detach().cpu().clone() for name, value in trainable.items()}
    base_loss = trainer.evaluate().get("eval_loss")
    while True:
        try:
            ending.training = True
            if not (checkpoint and at_its_end(trainer, checkpoint)):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            return trainer, base_loss
        except torch.OutOfMemoryError as error:
            batching, keeps = lighter(trainer.batching, kept, ways(), error)
            checkpoint, evaluates = trainer.pace.checkpoint or checkpoint, trainer.eval_dataset is not None
        model = trainer.model
        del trainer
        free_memory()
        if kept and not keeps:
            recompute_activations(model)
        kept = keeps
        with torch.no_grad():
            for name, value in trainable.items():  # where no checkpoint was reached, the run begins anew
                value.copy_(first[name])
        trainer = make_trainer(batching, kept)
        if not evaluates:
            trainer.eval_dataset = None


def recompute_activations(model: Any) -> None:
    """Turn gradient checkpointing on in a model that was made ready without it."""
    if "unsloth" in sys.modules and hasattr(model, "_unsloth_gradient_checkpointing"):
        from unsloth import FastLanguageModel

        model._unsloth_gradient_checkpointing = True
        FastLanguageModel.for_training(model, use_gradient_checkpointing=True)
    else:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})


# ---------------------------------------------------------------------------------------------------------------
# Evidence: what training changed, measured on rows held out, and what it took; for events, Trackio and model card.

LIBRARY = {"unsloth": "Unsloth", "trl": "TRL and PEFT"}
ANSWERS = 3  # held-out questions that base and tuned model answer
ANSWER_TOKENS = 128
SHOWN_CHARS = 800  # of a text in the card


def last_loss(trainer: Any) -> float:
    return next(entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry)


def final_loss(trainer: Any, best: Best) -> float | None:
    """Held-out loss of the adapter that was saved, measured now unless training ended on an evaluation; None if it fails."""
    if best.weights:
        return best.loss
    last: dict[str, Any] = next((entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry), {})
    return last["eval_loss"] if last.get("step") == trainer.state.global_step else trainer.evaluate().get("eval_loss")


def losses_of(base: float | None, tuned: float | None) -> dict[str, float | None]:
    """Losses in nats per token and their perplexities, by name; None where nothing was held out."""
    losses = {"base_loss": base, "tuned_loss": tuned}
    perplexities = {"base_perplexity": base, "tuned_perplexity": tuned}
    return losses | {name: None if loss is None else round(perplexity(loss), 4) for name, loss in perplexities.items()}


def compare_answers(model: Any, tokenizer: Any, example: Mapping[str, Any]) -> dict[str, str] | None:
    """One held-out question answered by the base model and by the tuned one, greedily. None for rows of plain text."""
    import torch

    learned = [label != IGNORE for label in example["labels"]]
    start = len(learned) - learned[::-1].index(True)  # of the last answer, going back from its end
    while start and learned[start - 1]:
        start -= 1
    if not start or example["input_ids"][:start] == [tokenizer.bos_token_id]:
        return None
    prompt = torch.tensor([example["input_ids"][:start]], device=model.device)

    def answer() -> str:
        with torch.no_grad():
            output = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=ANSWER_TOKENS,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        return tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True).strip()

    with model.disable_adapter():
        base = answer()
    return {
        "prompt": tokenizer.decode(prompt[0], skip_special_tokens=True).strip(),
        "base": base,
        "tuned": answer(),
        "reference": tokenizer.decode(example["input_ids"][start:], skip_special_tokens=True).strip(),
    }


def show_answers(model: Any, tokenizer: Any, rows: Iterable[Mapping[str, Any]], backend: str) -> list[dict[str, str]]:
    """compare_answers for the first ANSWERS questions, each as an event. A failure is a warning: the result is safe."""
    answers: list[dict[str, str]] = []
    compared = (compare_answers(model, tokenizer, row) for row in rows)
    try:
        if backend == "unsloth":
            from unsloth import FastLanguageModel

            FastLanguageModel.for_inference(model)
        else:
            model.gradient_checkpointing_disable()
            model.eval()
        for answer in itertools.islice(filter(None, compared), ANSWERS):
            emit("sample", **answer)
            answers.append(answer)
    except Exception as error:
        emit("warning", code="sample_failed", message=f"{type(error).__name__}: {error}")
    return answers


def draw_losses(history: list[dict[str, Any]], base_loss: float | None, kept_step: int | None, path: Path) -> bool:
    """Whether the picture of the loss over the steps could be drawn. A failure is a warning: the result is safe."""
    training = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    # The base model was measured before the trainer's history began.
    held_out = [(0, base_loss)] if base_loss is not None else []
    held_out += [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry and entry["step"]]
    try:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3.5), dpi=100, layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)")
        axes.plot(*zip(*training, strict=True), color="tab:blue", alpha=0.5, label="training batches")
        if held_out:
            axes.plot(*zip(*held_out, strict=True), color="tab:orange", marker="o", label="held-out rows")
        if kept_step is not None:
            axes.axvline(kept_step, color="gray", linestyle=":", label=f"kept: step {kept_step}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        figure.savefig(path)
    except Exception as error:
        emit("warning", code="picture_failed", message=f"{type(error).__name__}: {error}")
        return False
    return True


def card_figures(settings: Settings, trainer: Any, seconds: float) -> dict[str, Any]:
    """How the adapter was made, by title, from what the events said; None where it does not apply. seconds: of the run."""
    facts, data, masks, reach = run_facts(), SAID["data"], SAID["masks"], SAID["coverage"]
    return {
        "Base model revision": settings.base_model_revision or None,
        "Data set revision": data["revision"],
        "Rows": f"{masks['rows_kept']:,} trained on, {data['eval_rows']:,} held out, {masks['rows_without_answer']:,} left out",
        "Supervised share": f"{masks['supervised_fraction']:.1%} of the tokens; the rest is read, not learned",
        "LoRA": f"rank {settings.lora_r}, alpha {settings.lora_alpha}, on a base in {16 if settings.load_in_16bit else 4} bits",
        "LoRA coverage": f"{reach['coverage']:.1%} of all linear layers: {reach['modules']} modules, "
        f"{reach['trainable']:,} trainable parameters",
        "Batches": batches(settings),
        "Learning rate, seed": f"{settings.learning_rate:g}, {settings.seed}",
        "Steps": steps_made(trainer.state),
        "Training loss at the end": f"{last_loss(trainer):.4f}",
        "Tokens": tokens_read(trainer.pace.figures()),
        "Duration": f"{seconds / 60:.1f} min",
        "Peak GPU memory": None if peak_gb() is None else f"{peak_gb():.1f} GB",
        "Cost": cost_against_estimate(facts),
        "Hardware": machine(SAID["plan"]["hardware"], facts),
        "Versions": ", ".join(f"{name} {number}" for name, number in versions(settings.backend).items()),
        "Plan": facts.get("plan_id"),
        "Script": f"sha256 {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}",
    }


def batches(settings: Settings) -> str:
    made = SAID["batching"]
    how = f"sequences of {made['length']:,} tokens, each packed with rows" if made["packed"] else "single rows"
    return f"{made['rows_per_step']} rows a step, in {made['accumulation']} × {made['micro']} {how}"


def steps_made(state: Any) -> str:
    if not (stopped := SAID.get("early_stopped")):
        return f"{state.global_step:,}"
    saved = "" if stopped["usd_saved"] is None else f", about ${stopped['usd_saved']:.2f}"
    return (
        f"{stopped['step']:,} of {stopped['of']:,}: stopped early, as the held-out loss no longer fell. "
        f"The adapter is that of step {stopped['kept_step']:,}. Saved: {stopped['steps_saved']:,} steps{saved}"
    )


def tokens_read(pace: Mapping[str, Any]) -> str:
    speed = f"; about {pace['timed_tokens'] / pace['train_s']:,.0f} a second" if pace["train_s"] else ""
    return f"{pace['tokens']:,}, padding not counted{speed}"


def cost_against_estimate(facts: Mapping[str, Any]) -> str | None:
    cost, estimate = cost_usd(), facts.get("estimate")
    if cost is None:
        return None
    foreseen = "; estimated ${usd_low:.2f} to ${usd_high:.2f} for the whole run".format(**estimate) if estimate else ""
    return f"about ${cost:.2f}{foreseen}"


def machine(found: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    parts = [found["device"], f"{found['vram_gb']} GB" if "vram_gb" in found else f"{found['cpus']} cores"]
    titles = {"CUDA": found.get("cuda"), "driver": found.get("driver"), "flavor": facts.get("flavor")}
    return ", ".join(parts + [f"{title} {value}" for title, value in titles.items() if value])


def model_card(
    settings: Settings,
    losses: Mapping[str, float | None],
    figures: Mapping[str, Any],
    answers: list[dict[str, str]],
    picture: str | None,
) -> str:
    """README.md of the adapter: what training changed, how it was made, how it is used. picture: a file beside it."""
    from huggingface_hub import ModelCardData

    base, data, where = Path(settings.base_model), Path(settings.dataset), settings.output_repo or settings.save_local
    header = ModelCardData(
        base_model=None if base.exists() else settings.base_model,
        library_name="peft",
        pipeline_tag="text-generation",
        datasets=None if data.exists() else [settings.dataset],
        tags=[*(["unsloth"] if settings.backend == "unsloth" else []), "trl", "sft", "lora", "hf_jobs"],
    )
    parts = [
        f"---\n{header.to_yaml()}\n---",
        f"# {Path(where).name}",
        # Of a path on the training machine, a reader of the card needs the last part only.
        f"A LoRA adapter for `{base.name if base.exists() else base}`, trained with {LIBRARY[settings.backend]} on "
        f"`{data.name if data.exists() else data}`.",
        "## What training changed",
        card_losses(losses),
        f"![Training and held-out loss over the steps]({picture})" if picture else "",
        card_answers(answers) if settings.card_samples else "",
        "## How it was made",
        table({"": "", **{name: value for name, value in figures.items() if value is not None}}),
        "" if base.exists() else CARD_USAGE.format(where=where) + (CARD_CHAT if answers else "") + "```",
    ]
    return redacted("\n\n".join(filter(None, parts))) + "\n"


def card_losses(losses: Mapping[str, float | None]) -> str:
    if losses["base_loss"] is None or losses["tuned_loss"] is None:
        failed = SAID.get("warning", {}).get("code") == "evaluation_failed"
        return "Not measured: the evaluation failed." if failed else "Not measured: no rows were held out."
    changes = {
        "Held-out rows": "base → tuned",
        "Loss (nats per token)": "{base_loss:.4f} → {tuned_loss:.4f}",
        "Perplexity": "{base_perplexity:,.2f} → {tuned_perplexity:,.2f}",
    }
    return table({name: change.format(**losses) for name, change in changes.items()})


def card_answers(answers: list[dict[str, str]]) -> str:
    if not answers:
        return ""
    parts = [f"## Held-out questions\n\nAnswered greedily, with at most {ANSWER_TOKENS} tokens."]
    for answer in answers:
        row = " | ".join(cell(answer[name]) for name in ("base", "tuned", "reference"))
        parts.append(quoted(answer["prompt"]) + f"\n\n| Base | Tuned | Reference |\n|---|---|---|\n| {row} |")
    return "\n\n".join(parts)


def table(rows: Mapping[str, Any]) -> str:
    """A Markdown table of two columns; the first row is its head."""
    head, *lines = (f"| {name} | {value} |" for name, value in rows.items())
    return "\n".join([head, "|---|---|", *lines])


def cell(text: str) -> str:
    """A model's text on one line, for a table."""
    return shown(text).replace("|", "\\|").replace("\n", "<br>") or "(nothing)"


def quoted(text: str) -> str:
    return "\n".join(f"> {line}  " for line in shown(text).splitlines())


def shown(text: str) -> str:
    """A model's text as Markdown in which its tags are seen, without its middle where it is long."""
    half = SHOWN_CHARS // 2
    text = text if len(text) <= SHOWN_CHARS else f"{text[:half]} … {text[-half:]}"
    return html.escape("".join(char for char in text if char.isprintable() or char == "\n"), quote=False)


CARD_USAGE = """## Use

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{where}")
tokenizer = AutoTokenizer.from_pretrained("{where}")
"""

CARD_CHAT = """
messages = [{"role": "user", "content": "Your question"}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**prompt.to(model.device), max_new_tokens=200)
print(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
"""


HUB_TIMEOUT_S = 120  # for one piece of an answer, not for a whole upload
PUSH_PAUSES_S = (5, 20, 60, 120, 240, 480)  # a quarter of an hour costs less than the run that would be lost
RESULT_ONLY = ["checkpoints*", "merged/*"]  # what else lies in the folder is not pushed


def push_results(api: Any, settings: Settings, folder: Path, ending: Ending) -> None:
    """The adapter on the Hub. Raises Stop when it does not get there, with where it is and how it can be fetched or sent."""
    if api is None:
        return
    for pause in (*PUSH_PAUSES_S, None):
        error = push_folder(api, settings, folder, "Adapter and card", ignore_patterns=RESULT_ONLY)
        if error is None:
            emit("pushed", repo=settings.output_repo, url=f"{api.endpoint}/{settings.output_repo}")
            return
        if pause is None or is_refused(error) or not ending.wait(pause):
            raise unpushed(settings, folder, error)


def unpushed(settings: Settings, folder: Path, error: Exception) -> Stop:
    """What to say of a result that the Hub did not take: one command fetches it, sends it, or makes it again."""
    code = "push_denied" if is_refused(error) else "push_failed"
    message, repo = f"The adapter did not reach {settings.output_repo}: {error}", settings.output_repo
    job = os.environ.get("JOB_ID")
    if not job:
        private = "" if settings.public else " --private"
        fix = f"hf upload {repo} {shlex.quote(str(folder.resolve()))} . --exclude 'checkpoints*' --exclude 'merged/*'{private}"
        return Stop(code, message, f"It is on this disk. With a token that may write there: {fix}")
    if rescue(folder, job):
        bucket = f"{run_facts().get('namespace') or repo.split('/')[0]}/jobs-artifacts"
        fix = f"hf buckets sync hf://buckets/{bucket} ./rescued --include '*/rescued-{job}/*'"
        return Stop(code, message, f"It was saved with the job's files. Fetch it: {fix}")
    return Stop(
        code,
        message,
        f"Submit the same command with --resume at its end: it goes on from the last checkpoint in {repo}, if any.",
    )


def rescue(folder: Path, job: str) -> bool:
    """Copy the result to the bucket that this script came from, which needs no token: it is mounted at /data."""
    data = Path(__file__).resolve().parent
    if data.name != "data":
        return False
    try:
        shutil.copytree(folder, data / f"rescued-{job}", ignore=shutil.ignore_patterns("checkpoints*", "merged"))
    except OSError as error:
        emit("warning", code="rescue_failed", message=str(error))
        return False
    return True


def require_mergeable(settings: Settings) -> None:
    """Stop before training where a merge asked for could not be made after it."""
    import torch

    unsloth_in_4bit = settings.backend == "unsloth" and not settings.load_in_16bit
    if settings.merge_model and unsloth_in_4bit and not torch.cuda.is_available():
        raise Stop(
            "merge_needs_16bit",
            "Without a GPU a 4-bit model cannot be merged with its adapter.",
            "Add --load-in-16bit, or leave --merge-model out.",
        )


def push_merged(model: Any, tokenizer: Any, api: Any, settings: Settings) -> None:
    """The base with the adapter folded in, in 16 bits, in a repository of its own: the adapter stays as it is.

    Raises Stop when that fails; the adapter is safe by then.
    """
    folder, repo = Path(settings.save_local) / "merged", settings.output_repo + "-merged"
    try:
        if settings.backend == "unsloth":
            model.save_pretrained_merged(str(folder), tokenizer, save_method="merged_16bit")
        else:
            save_merged(settings, folder)
            tokenizer.save_pretrained(folder)
        if api is not None:
            api.create_repo(repo, private=not settings.public, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Merged 16-bit model")
            emit("pushed", repo=repo, url=f"{api.endpoint}/{repo}")
    except Exception as error:
        raise Stop(
            "merge_failed",
            f"The adapter is complete, its merged copy is not: {type(error).__name__}: {error}",
            "Merge it from the adapter with PEFT's merge_and_unload; training again is not needed.",
        ) from error


def save_merged(settings: Settings, folder: Path) -> None:
    """The saved adapter folded into the model as it was published, on the processor: it needs no GPU memory."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(
        settings.base_model, revision=settings.base_model_revision or None, dtype="bfloat16"
    )
    PeftModel.from_pretrained(base, settings.save_local).merge_and_unload().save_pretrained(folder)


def require_local_model(settings: Settings) -> None:
    """Raises Stop in the first second where the model is a path, and no model is there."""
    model = settings.base_model
    folder = Path(os.path.expanduser(model))
    named_as_path = model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model
    if (named_as_path or folder.exists()) and not (folder / "config.json").is_file():
        what = "holds no config.json" if folder.is_dir() else "does not exist"
        fix = "Correct --base-model: a folder with config.json and weights, or a Hub id such as LiquidAI/LFM2.5-1.2B-Instruct."
        raise Stop("no_model", f"The model {model} {what}.", fix)


def train(settings: Settings) -> None:
    began = time.monotonic()
    require_local_model(settings)
    ending = Ending()
    ending.listen()

    found, installing_s = versions(settings.backend), round(time.time() - billed_since(), 1)
    emit("plan", settings=asdict(settings), hardware=hardware(), versions=found, installing_s=installing_s)

    # ---- what can fail for free comes first: the repository, the rows, their columns
    require_gpu_where_paid()
    require_mergeable(settings)
    api, settings = open_repository(settings)
    rows = load_rows(settings)
    layout = detect_format(rows.column_names, settings.prompt_column, settings.completion_column, media_columns(rows.features))
    train_rows, eval_rows = split_rows(rows, settings)
    unused = sorted(set(rows.column_names) - set(layout.columns.values()))
    emit(
        "data",
        rows=len(rows),
        train_rows=len(train_rows),
        eval_rows=len(eval_rows or ()),
        format=layout.name,
        columns=layout.columns,
        unused_columns=unused,
        revision=data_revision(settings),
    )

    # ---- tokens and masks; unsloth is imported before transformers, since it patches what comes after it
    if settings.backend == "unsloth":
        import unsloth  # noqa: F401
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(settings.base_model, revision=settings.base_model_revision or None)
    require_decoder(config.to_dict())
    # Whatever is pushed to the model meanwhile: its weights are of the commit that its configuration is of.
    settings = replace(settings, base_model_revision=getattr(config, "_commit_hash", None) or settings.base_model_revision)
    tokenizer = AutoTokenizer.from_pretrained(settings.base_model, revision=settings.base_model_revision or None)
    renderer = make_renderer(tokenizer, layout)
    train_tokens, masks = encode_rows(train_rows, renderer, layout, settings.max_seq_length)
    require_supervised(masks)
    eval_tokens = encode_rows(eval_rows, renderer, layout, settings.max_seq_length)[0] if eval_rows else None
    if eval_rows and not eval_tokens:
        message = "Not one held-out row has an answer that fits: the run is not evaluated."
        emit("warning", code="no_evaluation", message=message)
        eval_tokens = None
    first = Example(train_tokens[0]["input_ids"], train_tokens[0]["labels"], 0, 0)
    emit("masks", **masks, digest=digest_of(renderer, layout, rows), sample=segments(tokenizer, first))

    # ---- the model, and how much of it the adapter reaches
    model = load_model(settings)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # harmless here: labels, not the pad token, say what is learned
    keep_rows_apart(model)
    packed = can_pack(model, settings)
    steps = Steps(train_tokens["length"], settings, packed)
    longest = max([*train_tokens["length"], *(eval_tokens["length"] if eval_tokens else ())])

    def length_for(sequences: int) -> int:
        return rounded(max(steps.spread_length(sequences), longest))

    batching, kept = choose_batching(settings, length_for, room_for(model, settings), packed)
    settings = replace(settings, gradient_checkpointing="off" if kept else "offload")
    emit(
        "batching",
        packed=packed,
        **batching._asdict(),
        rows_per_step=effective_batch_size(settings),
        gradient_checkpointing=settings.gradient_checkpointing,
    )
    own = lineage(settings, train_tokens, packed)
    checkpoint = checkpoint_to_resume(settings, api, own)
    model = attach_adapter(model, settings)

    # ---- training, with the base model's loss first: it is the yardstick, and it finds an evaluation that does not fit
    best = Best(settings.early_stopping if eval_tokens else 0)

    def make_trainer(batching: Batching, kept: bool) -> Any:
        shape = replace(settings, gradient_checkpointing="off" if kept else "offload"), steps, batching, packed
        return build_trainer(model, tokenizer, train_tokens, eval_tokens, *shape, api, ending, best, own)

    trainer = make_trainer(batching, kept)
    require_masked_batch(trainer, masks["supervised_tokens"] / masks["tokens"])
    ways = lambda: batchings(settings, length_for, packed)  # noqa: E731
    trainer, base_loss = fit(trainer, make_trainer, checkpoint, ending, kept, ways)
    trained_steps = trainer.state.global_step - (step_of(checkpoint) if checkpoint else 0)
    if not trained_steps:  # the checkpoint is this very run's: what it had learned, and no more, is the result
        message = "Nothing was left to train: the checkpoint was this run's last one. Its adapter is the result."
        emit("warning", code="nothing_trained", message=message)
    trainer.pace.tokens = trainer.state.epoch * masks["tokens"]  # those of earlier trainers and machines, too

    # ---- the adapter is safe before anything that is merely nice to have
    folder = Path(settings.save_local)
    best.restore(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    push_results(api, settings, folder, ending)
    ending.training = False
    ending.require_none(trainer.state, settings.output_repo or str(folder))
    losses = losses_of(base_loss, final_loss(trainer, best) if eval_tokens else None)
    answers = show_answers(model, tokenizer, eval_tokens or (), settings.backend)
    trainer.curves.close(losses, answers)
    kept_step = best.step if best.weights else None
    drawn = draw_losses(trainer.state.log_history, base_loss, kept_step, folder / "loss.png")
    figures = card_figures(settings, trainer, time.monotonic() - began)
    card = model_card(settings, losses, figures, answers, "loss.png" if drawn else None)
    (folder / "README.md").write_text(card, encoding="utf-8")
    push_results(api, settings, folder, ending)
    if settings.merge_model:
        push_merged(model, tokenizer, api, settings)
    emit(
        "done",
        **losses,
        early_stopped="early_stopped" in SAID,
        supervised_fraction=masks["supervised_fraction"],
        coverage=SAID["coverage"]["coverage"],
        cost_usd=cost_usd(),
        steps=trainer.state.global_step,
        trained_steps=trained_steps,
        **trainer.pace.figures(),
        peak_gb=peak_gb(),
        path=str(folder.resolve()),
        repo=settings.output_repo or None,
        duration_s=round(time.monotonic() - began, 1),
    )


# As Python, safetensors and torch put it; a quota and a limit of a file's size are as good as full.
DISK_FULL = re.compile(
    r"No space left|File too large|quota exceeded|os error (28|27|122)|PytorchStreamWriter failed writing|unexpected pos \d+ vs \d+"
)


def main() -> int:
    settings = parse_args()
    if not sys.stderr.isatty():  # in a log, each refresh of a progress bar is a line
        os.environ.setdefault("TQDM_MININTERVAL", "30")
    try:
        train(settings)
    except Stop as stop:
        emit("failed", code=stop.code, message=stop.message, fix=stop.fix)
        return 1
    except KeyboardInterrupt:
        fix = "Submit it again; with --resume it goes on where it was."
        emit("failed", code="cancelled", message="The run was told to end.", fix=fix)
        return 1
    except Exception as error:
        if DISK_FULL.search(str(error)):
            room = "Choose a flavor with a larger disk" if os.environ.get("JOB_ID") else "Make room on this disk"
            fix = f"{room}; the same command with --resume at its end goes on from the last checkpoint."
            emit("failed", code="disk_full", message=f"The disk is full: {error}", fix=fix)
            return 1
        emit("failed", code="error", message=f"{type(error).__name__}: {error}", fix="The log has the traceback.")
        print_traceback()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
