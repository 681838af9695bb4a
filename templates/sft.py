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
import gc
import hashlib
import html
import inspect
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
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
    dataset: str = setting("", "rows to learn (needed): Hub id, or local .jsonl .json .csv .parquet .txt")
    dataset_config: str = setting("", "configuration of the data set (default: `default`, or the only one)")
    dataset_split: str = setting("", "split to train on (default: `train`, or the only one)")
    dataset_revision: str = setting("", "commit or branch of the data set (default: main)")
    prompt_column: str = setting("", "column that holds the question, where its name is not recognised")
    completion_column: str = setting("", "column that holds the answer, where its name is not recognised")
    num_samples: int = setting(0, "use only the first N rows (0: all)")
    eval_split: float = setting(0.1, "share of the rows held out for evaluation (0: no evaluation)")
    max_eval_rows: int = setting(200, "evaluate on at most N of the rows held out, since evaluation is paid for too")
    # Training
    num_epochs: float = setting(1.0, "passes over the training rows")
    max_steps: int = setting(0, "stop after N optimizer steps, whatever --num-epochs says (0: no limit)")
    batch_size: int = setting(4, "rows of full length in one forward pass, at most")
    gradient_accumulation: int = setting(4, "times --batch-size: the rows of an optimizer step")
    learning_rate: float = setting(2e-4, "peak learning rate")
    max_seq_length: int = setting(2048, "tokens per row; what is longer is cut, and said")
    packing: bool = setting(True, "fill each sequence with several rows, kept apart; rows alone where a model cannot")
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
MEDIA = {"image", "images", "audio", "video"}


class Format(NamedTuple):
    """How the rows of a data set are read: a name and, by role, the columns that are used."""

    name: str
    columns: dict[str, str]


def detect_format(columns: Iterable[str], prompt_column: str = "", completion_column: str = "") -> Format:
    """Find how to read a data set from its column names. Raises Stop where no reading is certain."""
    columns = list(columns)
    if prompt_column:
        missing = [name for name in (prompt_column, completion_column) if name not in columns]
        if missing:
            raise Stop(
                "unknown_column",
                f"The data set has no column {missing[0]!r}; it has: {', '.join(columns)}.",
                "Name columns that exist with --prompt-column and --completion-column.",
            )
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
    if media := [name for name in columns if name in MEDIA]:
        raise Stop(
            "unknown_columns",
            f"The rows hold {', '.join(media)}, and only text can be learned.",
            "Choose a data set with messages, or with a question and an answer in each row.",
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
    # Names come from the data set, and a fix is pasted into a shell.
    return "Name the two columns, such as: --prompt-column {} --completion-column {}".format(*map(shlex.quote, columns[:2]))


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
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"a message holds {kind}, and only text can be learned")
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
    return {"role": ROLES[role], "content": content, **kept}


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
    values = {role: row.get(column) for role, column in layout.columns.items()}
    if layout.name == "text":
        return {"text": plain_text(values["text"])}
    if layout.name == "alpaca":
        question = "\n\n".join(filter(None, (plain_text(values["instruction"]), plain_text(values.get("input")))))
        return {"prompt": question, "completion": plain_text(values["output"])}
    if layout.name == "prompt-completion":
        prompt, completion = values["prompt"], values["completion"]
        if isinstance(prompt, list) and isinstance(completion, list):
            return {"messages": [normalise_message(message) for message in prompt + completion]}
        return {"prompt": plain_text(prompt), "completion": plain_text(completion)}
    turns = parsed(values["messages"])
    if not isinstance(turns, list) or not turns:
        raise ValueError("the conversation is empty")
    tools = without_nulls(parsed(values.get("tools") or None))
    return {"messages": [normalise_message(turn) for turn in turns], **({"tools": tools} if tools else {})}


# ---------------------------------------------------------------------------------------------------------------
# Masks: a row becomes the text the model sees, and the stretches of it that the model learns to write.
#
# The stretches are found by rendering the conversation again with one assistant turn replaced by a marker. What
# stands before and after the marker is the template's own text; what stands there in the real rendering is that
# turn. So no family needs to be known by name, and text in a message that looks like a tag cannot be taken for one.

MARKER = "qXz7assistantTurnqXz7"
IGNORE = -100
Span = tuple[int, int]


class Example(NamedTuple):
    """A row as the trainer sees it. labels has input_ids' length; -100 where nothing is learned."""

    input_ids: list[int]
    labels: list[int]
    total_tokens: int  # before the cut at max_length
    total_supervised: int

    def cut(self, max_length: int) -> Example:
        return self._replace(input_ids=self.input_ids[:max_length], labels=self.labels[:max_length])


class Renderer:
    """A tokenizer's chat template, and what was learned about it by trying: built once for a data set."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        # Longest first, so that no token is taken for one that it begins with.
        names = sorted({*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}, key=len, reverse=True)
        self.tokens = "|".join(map(re.escape, names)) or r"(?!)"
        first = tokenizer("a").input_ids[:1]
        self.bos = tokenizer.bos_token if tokenizer.bos_token and first == [tokenizer.bos_token_id] else ""
        self.eos = tokenizer.eos_token or ""
        self.header = self.find_header() if tokenizer.chat_template else ""
        self.closing = self.find_closing() if tokenizer.chat_template else ""

    def chat(self, messages: list[dict], tools: list | None = None, prompt: bool = False) -> str:
        """The conversation as text. Raises ValueError where the template refuses it."""
        try:
            return self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # a template raises whatever it likes: over a system turn, or two questions in a row
            raise ValueError(f"the chat template refuses it: {error}") from error

    def find_header(self) -> str:
        """The text that opens an assistant turn, `<|im_start|>assistant\\n` say; "" where a template has none.

        It is the part of the generation prompt that stands before an earlier answer too: some templates put an
        empty think block after it for the last answer only.
        """
        question, answer = {"role": "user", "content": "question"}, {"role": "assistant", "content": MARKER}
        asked, bare = self.chat([question], prompt=True), self.chat([question])
        generation_prompt = asked[len(os.path.commonprefix([asked, bare])) :]
        before, _, _ = self.chat([question, answer, question, {"role": "assistant", "content": "b"}]).partition(MARKER)
        for length in range(len(generation_prompt), 0, -1):
            if generation_prompt[:length] in before:
                return generation_prompt[:length]
        return ""

    def find_closing(self) -> str:
        """The tokens that close the last answer, `<|im_end|>` say; "" where the template closes none."""
        question, answer = {"role": "user", "content": "question"}, {"role": "assistant", "content": MARKER}
        closing = re.match(rf"\s*(?:{self.tokens})+", self.chat([question, answer]).partition(MARKER)[2])
        return closing.group() if closing else ""

    def render(self, row: Mapping[str, Any]) -> tuple[str, list[Span]]:
        """The text of a normalised row and the spans of it that are learned, as character offsets.

        Raises ValueError where the template refuses the row or the spans cannot be told apart from it.
        """
        if "text" in row:
            # Rows rendered beforehand carry these tokens already.
            body = row["text"].removeprefix(self.bos).removesuffix(self.eos)
            text = self.bos + body + self.eos
            return text, [(len(self.bos), len(text))] if body.strip() else []
        if "prompt" in row and not self.tokenizer.chat_template:
            head = self.bos + row["prompt"]
            text = head + row["completion"] + self.eos
            return text, [(len(head), len(text))] if row["completion"].strip() else []
        return self.render_chat(as_messages(row), row.get("tools"))

    def render_chat(self, messages: list[dict], tools: list | None) -> tuple[str, list[Span]]:
        text = self.chat(messages, tools)
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        spans = []
        for index in answers:
            if not has_answer(messages[index]):
                continue
            span = self.span_by_marker(text, messages, tools, index) or self.span_by_prefix(text, messages, tools, index)
            if span is None:
                raise ValueError(f"the chat template does not show where message {index + 1} begins and ends")
            spans.append(span)
        if spans and answers[-1] == len(messages) - 1 and not self.closing:
            # Without a token that ends the answer, the model would learn never to stop.
            text = text[: spans[-1][1]].rstrip() + self.eos
            spans[-1] = (spans[-1][0], len(text))
        return text, spans

    def span_by_marker(self, text: str, messages: list[dict], tools: list | None, index: int) -> Span | None:
        marker = next(mark for mark in (MARKER + "7" * more for more in itertools.count()) if mark not in text)
        replaced = [*messages[:index], {"role": "assistant", "content": marker}, *messages[index + 1 :]]
        try:
            before, found, after = self.chat(replaced, tools).partition(marker)
        except ValueError:  # over a tool's result whose call is gone, for one
            return None
        start = before.rfind(self.header) + len(self.header) if self.header else len(before)
        if index and messages[index - 1]["role"] != "user":
            # A tool's result may stand in the same turn as the answer to it, under one header.
            start = max(start, self.end_of_earlier(text, messages[:index], tools))
        end = len(text) - len(after)
        if not found or self.header not in before or text[:start] != before[:start] or not text.endswith(after):
            return None
        return self.closed(text, start, end)

    def end_of_earlier(self, text: str, messages: list[dict], tools: list | None) -> int:
        """How far text is the rendering of these messages alone."""
        try:
            return len(os.path.commonprefix([text, self.chat(messages, tools)]))
        except ValueError:
            return 0

    def span_by_prefix(self, text: str, messages: list[dict], tools: list | None, index: int) -> Span | None:
        """For a turn that later turns refer to (a tool call): render what comes before it, then with it."""
        try:
            before, through = self.chat(messages[:index], tools, prompt=True), self.chat(messages[: index + 1], tools)
        except ValueError:
            return None
        shared = os.path.commonprefix([text, through]).rstrip()
        if not text.startswith(before) or len(shared) <= len(before):
            return None
        return len(before), len(shared)

    def closed(self, text: str, start: int, end: int) -> Span | None:
        """The span with what closes its turn, since a model must learn to stop: as after the last answer, or one token."""
        if self.closing and text.startswith(self.closing, end):
            end += len(self.closing)
        elif token := re.compile(rf"\s*(?:{self.tokens})").match(text, end):
            end = token.end()
        return (start, end) if start < end else None

    def encode(self, row: Mapping[str, Any], max_length: int) -> Example:
        """Token ids and labels of a normalised row, cut at max_length tokens. Raises ValueError as render does."""
        return self.tokens_of(*self.render(row)).cut(max_length)

    def tokens_of(self, text: str, spans: list[Span]) -> Example:
        """Token ids and labels of a rendered row, whole."""
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, labels = encoding["input_ids"], [IGNORE] * len(encoding["input_ids"])
        remaining = iter(spans)
        start, end = next(remaining, (len(text), len(text)))
        for position, (left, right) in enumerate(encoding["offset_mapping"]):
            while left >= end and end < len(text):
                start, end = next(remaining, (len(text), len(text)))
            # A token that straddles the start is the first one the model writes: " answer" after "[/INST]".
            if left < end and right > start:
                labels[position] = ids[position]
        return Example(ids, labels, len(ids), sum(label != IGNORE for label in labels))


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

NOT_ADAPTED = re.compile(r"lm_head|embed|vision|visual|image|audio|multi_modal|(^|\.)(router|gate|wte|wpe)$")
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
    encoders = r"(?!.*(?:vision|visual|image|audio|multi_modal))"
    return encoders + r"(?:.*\.)?(?:" + "|".join(map(re.escape, targets)) + ")"


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

FILE_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


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

    try:
        return load_dataset(**data_source(settings), streaming=streaming)
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


def unreadable(settings: Settings, error: Exception) -> Stop:
    return Stop(
        "dataset_unreadable",
        f"The data set {settings.dataset} cannot be read: {type(error).__name__}: {error}",
        "Look at its files: an empty one, or rows whose columns differ, cannot be loaded.",
    )


def data_source(settings: Settings) -> dict[str, Any]:
    """Arguments of load_dataset for a local file, a local folder or a data set on the Hub."""
    from datasets import get_dataset_config_names, get_dataset_split_names

    path = Path(settings.dataset).expanduser()
    if path.is_file():
        if path.suffix not in FILE_BUILDERS:
            raise Stop("unknown_file", f"{path.name} is none of {', '.join(FILE_BUILDERS)}.", "Convert it to .jsonl.")
        return {"path": FILE_BUILDERS[path.suffix], "data_files": str(path), "split": "train"}
    if settings.dataset.startswith((".", "/", "~")) and not path.exists():
        raise Stop("dataset_not_found", f"There is no file or folder {settings.dataset}.", "Correct --dataset.")
    revision = settings.dataset_revision or None
    names = get_dataset_config_names(settings.dataset, revision=revision)
    config = choose("config", settings.dataset_config, names, "default")
    splits = get_dataset_split_names(settings.dataset, config, revision=revision)
    split = choose("split", settings.dataset_split, splits, "train")
    return {"path": settings.dataset, "name": config, "split": split, "revision": revision}


def data_revision(settings: Settings) -> str | None:
    """The data set's commit on the Hub, or a local file's sha256; what was asked for where the Hub does not say."""
    from huggingface_hub import HfApi

    if (path := Path(settings.dataset).expanduser()).is_file():
        return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    asked = settings.dataset_revision or None
    try:
        return HfApi().dataset_info(settings.dataset, revision=asked).sha
    except Exception:  # a local folder, or rows from the cache of a machine without a network: they are there all the same
        return asked


def encode_rows(rows: Any, renderer: Renderer, layout: Format, max_length: int) -> tuple[Any, dict[str, Any]]:
    """rows as input_ids, labels and length; those that teach nothing are left out, and counted by reason."""

    def encode(row: Mapping[str, Any]) -> dict[str, Any]:
        try:
            example = renderer.encode(normalise_row(row, layout), max_length)
        except ValueError as error:
            return {"input_ids": [], "labels": [], "length": 0, "supervised": 0, "cut": False, "dropped": str(error)}
        supervised = sum(label != IGNORE for label in example.labels)
        dropped = "" if supervised else "answer cut away" if example.total_supervised else "no answer"
        return {
            "input_ids": example.input_ids,
            "labels": example.labels,
            "length": len(example.input_ids),
            "supervised": supervised,
            "cut": example.total_tokens > max_length,
            "dropped": dropped,
        }

    processes = min(os.cpu_count() or 1, 16) if len(rows) > 5000 else None
    encoded = rows.map(encode, remove_columns=rows.column_names, num_proc=processes, desc="Rows to tokens")
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
    held_out = min(round(len(rows) * settings.eval_split), len(rows) - 1)
    if len(rows) == 0:
        raise Stop("no_rows", "The split of the data set has no rows.", "Choose another with --dataset-split.")
    if held_out < 1:
        return rows, None
    parts = rows.train_test_split(test_size=held_out, seed=settings.seed)
    return parts["train"], parts["test"].select(range(min(held_out, settings.max_eval_rows)))


SETTINGS_FILE = "training_settings.json"
OPEN_PAUSES_S = (5, 20, 60)


def open_repository(settings: Settings) -> Any:
    """Create the output repository and make its first commit, so that a push that cannot work fails now, not at the end."""
    from httpx import HTTPError
    from huggingface_hub import HfApi, set_client_factory
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
        return None
    for pause in (*OPEN_PAUSES_S, None):
        try:
            begin_repository(api, settings)
            return api
        except HTTPError as error:
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


def begin_repository(api: Any, settings: Settings) -> None:
    """The first commit. Raises Stop where the repository is something else's, and what the client raises."""
    api.create_repo(settings.output_repo, private=not settings.public, exist_ok=True)
    if {"config.json", "adapter_config.json"} & set(api.list_repo_files(settings.output_repo)) == {"config.json"}:
        raise Stop(
            "name_taken",
            f"{settings.output_repo} holds a whole model, and the adapter would be mixed with it.",
            "Name another --output-repo.",
        )
    api.upload_file(
        path_or_fileobj=json.dumps(asdict(settings), indent=1).encode(),
        path_in_repo=SETTINGS_FILE,
        repo_id=settings.output_repo,
        commit_message="Training begins",
    )


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
    """Whether the run must end before its last step: its timeout is near, or it was told to end (SIGTERM)."""

    MARGINS_S = 10, 300  # the least and the most; between them it is 5% of the timeout
    LOOKS_EVERY_S = 1.0

    def __init__(self):
        self.reason = ""
        self.training = False
        timeout = run_facts().get("timeout_s")
        self.deadline = billed_since() + timeout if timeout else None
        least, most = self.MARGINS_S
        self.margin = min(max(0.05 * timeout, least), most) if timeout else 0.0

    def listen(self) -> None:
        signal.signal(signal.SIGTERM, self.on_sigterm)

    def on_sigterm(self, *_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # uv passes on what a whole group of processes was sent already
        self.reason = "cancelled"
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
        why = {"deadline": "Its timeout was near", "cancelled": "It was told to end"}[self.reason]
        raise Stop(
            self.reason,
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


def room_for(model: Any, settings: Settings) -> Callable[[int], bool]:
    """Whether this machine has the room to keep the activations of so many tokens."""
    import torch

    if not torch.cuda.is_available():
        return lambda tokens: settings.gradient_checkpointing == "off"
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
    targets = lora_targets(linears, settings.target_modules)
    asked = {name: shape for name, shape in adaptable(linears).items() if leaf(name) in targets}
    model = with_lora(model, settings, target_pattern(targets))
    in_full_precision(model)
    prefix = "base_model.model."
    adapted = [name.removeprefix(prefix) for name, module in model.named_modules() if hasattr(module, "lora_A")]
    share = coverage(asked, adapted)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    emit(
        "coverage",
        coverage=round(share, 4),
        of_all_linear=round(coverage(linears, adapted), 4),
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
# Packing: several rows share one sequence of max_seq_length tokens, so that nothing is spent on padding and each
# forward pass has the same shape (a new one costs a GPU seconds). Rows must not see each other: attention is told by
# position_ids that start anew, convolutions by seq_idx, and rows_leak finds the models that listen to neither.


def pack(lengths: Iterable[int], size: int) -> list[list[int]]:
    """Row numbers by sequence, so that each holds at most size tokens: the longest row first, each where least is left."""
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


TOKENS_AT_ONCE, FEWEST_TOKENS_AT_ONCE = 8192, 2048
LONGEST_PACKED = 16384


class Batching(NamedTuple):
    """Sequences per forward pass, and forward passes per optimizer step. A sequence is one row, or several packed."""

    micro: int
    accumulation: int

    @classmethod
    def of(cls, settings: Settings, rows_per_sequence: float = 1.0, at_once: int | None = None) -> Batching:
        """As many sequences a step as hold the rows asked for, in as few passes of at most at_once as there can be."""
        sequences = max(round(settings.batch_size * settings.gradient_accumulation / rows_per_sequence), 1)
        accumulation = math.ceil(sequences / (at_once or sequences_at_once(settings)))
        return cls(round(sequences / accumulation), accumulation)

    def smaller(self, error: Exception) -> Batching:
        """The same rows per step, fewer of them at once. Raises Stop when it is one already."""
        if self.micro == 1:
            raise Stop(
                "out_of_vram",
                f"The GPU's memory does not hold one sequence at a time: {str(error).splitlines()[0]}",
                "Choose a flavor with more GPU memory (estimate.py lists them), or a smaller --max-seq-length.",
            ) from error
        factor = next(factor for factor in range(2, self.micro + 1) if self.micro % factor == 0)
        made = Batching(self.micro // factor, self.accumulation * factor)
        emit(
            "warning",
            code="out_of_vram",
            message=f"Out of GPU memory with {self.micro} sequences at once. Going on with {made.micro} in {made.accumulation} "
            "passes per step: the same training, in less memory.",
        )
        return made


def sequences_at_once(settings: Settings) -> int:
    """Beyond TOKENS_AT_ONCE no GPU gets faster, and the mask of a packed pass grows with the square of its tokens."""
    return min(settings.batch_size, max(TOKENS_AT_ONCE // settings.max_seq_length, 1))


def choose_passes(settings: Settings, rows_per_sequence: float, keeps: Callable[[int], bool]) -> tuple[Batching, bool]:
    """How a step is divided, and whether its activations are kept; keeps(tokens) says whether there is room for that.

    Keeping them saves a third of the arithmetic, so smaller passes are taken for it, but none too small for a GPU.
    """
    at_once = largest = sequences_at_once(settings)
    while at_once == largest or at_once * settings.max_seq_length >= FEWEST_TOKENS_AT_ONCE:
        batching = Batching.of(settings, rows_per_sequence, at_once)
        if keeps(batching.micro * settings.max_seq_length):
            return batching, True
        if at_once == 1:
            break
        at_once //= 2
    return Batching.of(settings, rows_per_sequence), False


class Collator:
    """Sequences, each a list of row numbers, as `sequences` × `size` tokens: always the same shape.

    Unsloth takes them in one line. transformers' own attention over a line would take a mask of its square: it gets
    them side by side.
    """

    def __init__(self, tokens: Any, size: int, sequences: int, filler: int, side_by_side: bool = False):
        self.tokens = tokens.with_format("numpy")  # lists would take ten times as long, while the GPU waits
        self.size, self.sequences, self.filler, self.side_by_side = size, sequences, filler, side_by_side

    def __call__(self, chosen: list[dict[str, list[int]]]) -> dict[str, Any]:
        rows = [row for sequence in chosen for row in self.filled(sequence["rows"])]
        missing = self.sequences - len(chosen)  # in the last batch of an epoch
        return as_batch(rows + missing * [self.fill(self.size)], self.size if self.side_by_side else None)

    def filled(self, numbers: list[int]) -> list[tuple[list[int], list[int]]]:
        columns = self.tokens[numbers]
        rows = list(zip(columns["input_ids"], columns["labels"], strict=True))
        left = self.size - sum(len(ids) for ids, _ in rows)
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
        # Attention over each row alone; without it, on a CPU, it is as exact over a mask of tokens × tokens.
        with contextlib.suppress(ImportError):
            from unsloth.utils.hf_packed_attention import enable_hf_packed_attention

            enable_hf_packed_attention()
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
    try:
        size = settings.max_seq_length // 2 * 2
        leak: bool | str = rows_leak(model, size, size if settings.backend == "trl" else None)
    except Exception as error:  # a forward that does not take a packed batch at all
        leak = f"{type(error).__name__}: {error}"
    if leak:
        said = "" if leak is True else f" ({leak})"
        emit("warning", code="not_packed", message=f"Rows would see each other in this model: each is trained alone.{said}")
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


def progress_callback(settings: Settings, api: Any, pace: Pace, ending: Ending, best: Best) -> Any:
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
            if ending.due(2 * pace.saving_s + pace.evaluation_s + (pace.step_s or 0)):
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
            (folder / SETTINGS_FILE).write_text(json.dumps(asdict(settings), indent=1), encoding="utf-8")
            message = f"Checkpoint at step {state.global_step}"
            pushed = api is not None and push_folder(api, settings, folder, message, path_in_repo="last-checkpoint") is None
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
    sequences: list[list[int]] | None = None,
    batching: Batching | None = None,
    api: Any = None,
    ending: Ending | None = None,
    best: Best | None = None,
) -> Any:
    """TRL's trainer over rows as tokens (columns input_ids, labels, length), each by itself or, with sequences, as packed."""
    import torch
    import transformers
    from datasets import Dataset, concatenate_datasets
    from trl import SFTConfig, SFTTrainer

    size, pace, plain = settings.max_seq_length, Pace(), settings.backend == "trl"
    packed, count = sequences is not None, len(train if sequences is None else sequences)
    batching = batching or Batching.of(settings, len(train) / count)
    passes = math.ceil(count / batching.micro)
    real_share = sum(train["length"]) / (passes * batching.micro * size)  # the last pass of an epoch is filled up
    collator = None
    if packed:
        rows, first = concatenate_datasets([train, held_out] if held_out else [train]), len(train)
        collator = Collator(rows, size, batching.micro, tokenizer.pad_token_id, side_by_side=plain)
        train = Dataset.from_dict({"rows": sequences})
        if held_out:
            numbers = [[first + row for row in sequence] for sequence in pack(held_out["length"], size)]
            held_out = Dataset.from_dict({"rows": numbers})

    class Trainer(SFTTrainer):
        def get_batch_samples(self, *args, **kwargs):
            pace.step_begins()
            batches, items = super().get_batch_samples(*args, **kwargs)
            pace.step_holds(
                sum(real_share * batch["input_ids"].numel() if packed else batch["attention_mask"].sum() for batch in batches)
            )
            return batches, items

        def evaluate(self, *args, **kwargs):
            """The mean loss of a learned token of the held-out rows, however they lie in batches."""
            began, total, learned = time.monotonic(), 0.0, 0
            self.model.eval()
            for batch in map(self._prepare_inputs, self.get_eval_dataloader()):
                with torch.compiler.set_stance("force_eager"):  # there is too little to do to compile for it
                    loss, *_ = self.prediction_step(self.model, batch, prediction_loss_only=True)
                here = learned_tokens(batch["labels"])
                total, learned = total + loss.item() * here, learned + here
            mean = total / learned
            metrics = {"eval_loss": mean, "eval_perplexity": perplexity(mean), "eval_runtime": time.monotonic() - began}
            self.log(metrics)
            self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    on_gpu, bf16 = torch.cuda.is_available(), has_bf16()
    if plain and not on_gpu:
        Trainer.compute_loss = transformers.Trainer.compute_loss  # TRL's own is a kernel for GPUs
    config = SFTConfig(
        output_dir=str(Path(settings.save_local) / "checkpoints"),
        num_train_epochs=settings.num_epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=batching.micro,
        gradient_accumulation_steps=batching.accumulation,
        learning_rate=settings.learning_rate,
        warmup_steps=0.03,
        # Its states are small beside all else, and one kernel updates them; in 8 bits each matrix would need its own.
        optim="adamw_torch_fused",
        bf16=bf16,
        fp16=on_gpu and not bf16,
        # Where rows are not packed, those of like length share a batch: each new shape costs time, and padding is paid for.
        train_sampling_strategy="random" if packed else "group_by_length",
        length_column_name="length",
        pad_to_multiple_of=64 if on_gpu else 8,
        remove_unused_columns=not packed,
        # Evaluation is where runs die of memory, so one row at a time; packed, in the shape that training takes too.
        per_device_eval_batch_size=batching.micro if packed else 1,
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
        max_length=size,
        # Rows arrive as tokens and labels: nothing after this point may change what is learned.
        dataset_kwargs={"skip_prepare_dataset": True},
        seed=settings.seed,
        **({"gradient_checkpointing": False} if plain else {}),  # it was set where the adapter was attached
    )
    curves = trackio_callback()
    trainer = Trainer(
        model=model,
        processing_class=tokenizer,
        args=config,
        data_collator=collator,
        train_dataset=train,
        eval_dataset=held_out,
        callbacks=[progress_callback(settings, api, pace, ending or Ending(), best or Best()), curves],
    )
    in_full_precision(model)  # TRL makes it bf16
    trainer.pace, trainer.batching, trainer.curves = pace, batching, curves
    trainer.remove_callback(transformers.PrinterCallback)  # the events say it
    return trainer


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


# Settings that decide which rows a step sees: a run can only go on with those that it began with.
ORDER = (
    "base_model", "base_model_revision", "load_in_16bit", "dataset", "dataset_config", "dataset_split", "dataset_revision",
    "prompt_column", "completion_column", "num_samples", "eval_split", "num_epochs", "max_steps", "batch_size",
    "gradient_accumulation", "learning_rate", "max_seq_length", "lora_r", "lora_alpha", "target_modules", "seed",
)  # fmt: skip


def newest_checkpoint(settings: Settings) -> Path | None:
    """The checkpoint with the most steps on this machine; None where there is none."""
    folders = (Path(settings.save_local) / "checkpoints").glob("checkpoint-*")
    whole = [folder for folder in folders if (folder / "trainer_state.json").is_file() and (folder / SETTINGS_FILE).is_file()]
    return max(whole, key=lambda folder: int(folder.name.rsplit("-", 1)[1]), default=None)


def checkpoint_to_resume(settings: Settings, api: Any) -> Path | None:
    """The newest checkpoint here or, after a move to another machine, in the repository. Raises Stop on other settings."""
    if not settings.resume:
        set_aside(Path(settings.save_local) / "checkpoints")
        return None
    found = newest_checkpoint(settings) or (fetch_checkpoint(settings, api) if api else None)
    if found is None:
        return None
    began = json.loads((found / SETTINGS_FILE).read_text("utf-8"))
    if changed := [name for name in ORDER if began.get(name, getattr(settings, name)) != getattr(settings, name)]:
        flags = " ".join(as_flag(name, began[name]) for name in changed)
        raise Stop(
            "resume_mismatch",
            f"The checkpoint was trained with other settings ({', '.join(changed)}), so its rows cannot be gone on with.",
            f"Pass what it began with: {flags}. Or leave --resume out, to begin anew.",
        )
    return found


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
        api.snapshot_download(settings.output_repo, allow_patterns="last-checkpoint/*", local_dir=folder)
    except (HTTPError, LocalEntryNotFoundError) as error:
        raise Stop("resume_failed", f"The checkpoint cannot be downloaded: {error}", "Try again in a minute.") from error
    fetched = folder / "last-checkpoint"
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


def fit(trainer: Any, make_trainer: Any, checkpoint: Path | None, ending: Ending) -> tuple[Any, float | None]:
    """Train, from a checkpoint where there is one: the trainer that came to the end, and the base model's loss before.

    Out of GPU memory the micro-batch is made smaller and the accumulation larger by the same factor, so that each step
    still sees the same rows, and training goes on from the newest checkpoint. Raises Stop where one row does not fit.
    """
    import torch

    trainable = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
    first = {name: value.detach().cpu().clone() for name, value in trainable.items()}
    base_loss = None
    while True:
        try:
            if base_loss is None and trainer.eval_dataset is not None:
                base_loss = trainer.evaluate()["eval_loss"]
            ending.training = True
            if not (checkpoint and at_its_end(trainer, checkpoint)):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            return trainer, base_loss
        except torch.OutOfMemoryError as error:
            batching, checkpoint = trainer.batching.smaller(error), trainer.pace.checkpoint or checkpoint
        del trainer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        with torch.no_grad():
            for name, value in trainable.items():  # where no checkpoint was reached, the run begins anew
                value.copy_(first[name])
        trainer = make_trainer(batching)


# ---------------------------------------------------------------------------------------------------------------
# Evidence: what training changed, measured on rows held out, and what it took; for events, Trackio and model card.

LIBRARY = {"unsloth": "Unsloth", "trl": "TRL and PEFT"}
ANSWERS = 3  # held-out questions that base and tuned model answer
ANSWER_TOKENS = 128
SHOWN_CHARS = 800  # of a text in the card


def last_loss(trainer: Any) -> float:
    return next(entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry)


def final_loss(trainer: Any, best: Best) -> float:
    """Held-out loss of the adapter that was saved, measured now unless training ended on an evaluation."""
    if best.weights:
        return best.loss
    last: dict[str, Any] = next((entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry), {})
    return last["eval_loss"] if last.get("step") == trainer.state.global_step else trainer.evaluate()["eval_loss"]


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
        "LoRA coverage": f"{reach['coverage']:.1%} of the layers asked for: {reach['modules']} modules, "
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
    length = f"{settings.max_seq_length:,} tokens"
    what = f"sequences of {length}, each packed with rows" if made["packed"] else f"single rows of at most {length}"
    return f"{made['micro']} × {made['accumulation']} a step: {what}"


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
        card_answers(answers),
        "## How it was made",
        table({"": "", **{name: value for name, value in figures.items() if value is not None}}),
        "" if base.exists() else CARD_USAGE.format(where=where) + (CARD_CHAT if answers else "") + "```",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def card_losses(losses: Mapping[str, float | None]) -> str:
    if losses["base_loss"] is None:
        return "Not measured: no rows were held out."
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


def train(settings: Settings) -> None:
    began = time.monotonic()
    ending = Ending()
    ending.listen()

    found, installing_s = versions(settings.backend), round(time.time() - billed_since(), 1)
    emit("plan", settings=asdict(settings), hardware=hardware(), versions=found, installing_s=installing_s)

    # ---- what can fail for free comes first: the repository, the rows, their columns
    require_gpu_where_paid()
    require_mergeable(settings)
    api = open_repository(settings)
    rows = load_rows(settings)
    layout = detect_format(rows.column_names, settings.prompt_column, settings.completion_column)
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
    first = Example(train_tokens[0]["input_ids"], train_tokens[0]["labels"], 0, 0)
    emit("masks", **masks, sample=segments(tokenizer, first))

    # ---- the model, and how much of it the adapter reaches
    model = load_model(settings)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # harmless here: labels, not the pad token, say what is learned
    keep_rows_apart(model)
    packed = can_pack(model, settings)
    sequences = pack(train_tokens["length"], settings.max_seq_length) if packed else None
    rows_per_sequence = len(train_tokens) / len(sequences or train_tokens)
    batching, kept = choose_passes(settings, rows_per_sequence, room_for(model, settings))
    settings = replace(settings, gradient_checkpointing="off" if kept else "offload")
    emit("batching", packed=packed, **batching._asdict(), gradient_checkpointing=settings.gradient_checkpointing)
    model = attach_adapter(model, settings)

    # ---- training, with the base model's loss first: it is the yardstick, and it finds an evaluation that does not fit
    best = Best(settings.early_stopping if eval_tokens else 0)

    def make_trainer(batching: Batching) -> Any:
        return build_trainer(model, tokenizer, train_tokens, eval_tokens, settings, sequences, batching, api, ending, best)

    checkpoint = checkpoint_to_resume(settings, api)
    trainer = make_trainer(batching)
    require_masked_batch(trainer, masks["supervised_tokens"] / masks["tokens"])
    trainer, base_loss = fit(trainer, make_trainer, checkpoint, ending)
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
        **trainer.pace.figures(),
        peak_gb=peak_gb(),
        path=str(folder.resolve()),
        repo=settings.output_repo or None,
        duration_s=round(time.monotonic() - began, 1),
    )


# As Python, safetensors and torch put it; a quota and a limit of a file's size are as good as full.
DISK_FULL = re.compile(r"No space left|File too large|quota exceeded|os error (28|27|122)|PytorchStreamWriter failed writing")


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
            fix = "Make room or choose a flavor with a larger disk; with --resume at its end the same command goes on."
            emit("failed", code="disk_full", message=f"The disk is full: {error}", fix=fix)
            return 1
        emit("failed", code="error", message=f"{type(error).__name__}: {error}", fix="The log has the traceback.")
        print_traceback()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
