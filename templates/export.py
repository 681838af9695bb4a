# /// script
# requires-python = ">=3.11,<3.15"
# dependencies = [
#     "torch==2.10.0",
#     "transformers==5.17.0",
#     "peft==0.21.2",
#     "huggingface_hub==1.33.0",
#     "llama-cpp-python==0.3.36",
#     "gguf==0.19.0",
#     "numpy==2.4.6",
#     "sentencepiece==0.2.1",
#     "protobuf==6.33.2",
#     "pip==26.0",
# ]
#
# [tool.uv]
# # Versions newer than this day do not exist for this script: it resolves next year as it does now.
# exclude-newer = "2026-11-20T00:00:00Z"
#
# # llama.cpp is built when this is installed: its library alone, which is half of the work, for any processor of the last
# # ten years.
# [tool.uv.config-settings-package.llama-cpp-python]
# "cmake.source-dir" = "vendor/llama.cpp"
# "wheel.install-dir" = "llama_cpp"
# "cmake.define.CMAKE_INSTALL_LIBDIR" = "lib"
# "cmake.define.CMAKE_INSTALL_RPATH" = "$ORIGIN"
# "cmake.define.LLAMA_BUILD_COMMON" = "OFF"
# "cmake.define.LLAMA_BUILD_APP" = "OFF"
# "cmake.define.GGML_NATIVE" = "OFF"
# ///
r"""Turn a LoRA adapter into models that run by themselves: a 16-bit merged one, and GGUF files for laptops and phones.

A job of its own that needs no GPU; only the adapter is read, so whatever goes wrong here costs no training:

    hf jobs uv run --flavor cpu-upgrade --timeout 2h --secrets HF_TOKEN templates/export.py -- \
        --adapter you/lfm-finetuned --quantizations q4_k_m,q8_0

Here, from a folder that templates/sft.py made:

    uv run templates/export.py --adapter ./tuned --save-local ./exported

After each conversion its answers are compared with the adapter's own, token by token, before it is pushed. What an
earlier run pushed is not made again. Each thing that matters is printed as one line `EVENT {"event": NAME, ...}`;
NAME is one of plan, warning, reference, merged, converted, compared, pushed, done, failed. Exit code 0: the models are
where the `done` event says; 1: the `failed` event says why and what to do.

llama-cpp-python is llama.cpp: its library quantises and answers, and its source archive holds the matching converter.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import html
import importlib.metadata
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

# ---------------------------------------------------------------------------------------------------------------
# Settings: fill them in here, or pass the flag of the same name.

QUANTIZATIONS = ("bf16", "f16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q4_0", "q3_k_m", "q2_k")
QUESTIONS = (
    "What is the capital of France?",
    "Explain in two sentences how a vaccine works.",
    "Write a short poem about the sea.",
    "List three uses of a paper clip.",
)


def setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    adapter: str = setting("", "LoRA adapter to export (needed): Hub id or local folder")
    adapter_revision: str = setting("", "commit or branch of the adapter (default: main)")
    base_model: str = setting("", "model under the adapter (default: the one that the adapter names)")
    base_model_revision: str = setting("", "commit or branch of that model (default: the one that the adapter names)")
    quantizations: str = setting("q4_k_m", f"GGUF files to make, by comma, of {' '.join(QUANTIZATIONS)}; none: merge only")
    output_repo: str = setting("", "OWNER/NAME: results go to NAME-merged and NAME-GGUF (default: the adapter's id)")
    public: bool = setting(False, "create these repositories public instead of private")
    save_local: str = setting("export-output", "folder for the results on the machine that exports")
    prompts: str = setting("", "text file with a question a line to compare on (default: the adapter card's and four more)")
    compare_tokens: int = setting(48, "tokens of each answer that are compared")
    min_agreement: float = setting(0.8, "stop when a conversion picks the adapter's token less often than this")
    again: bool = setting(False, "make again what an earlier run has pushed")

    @property
    def wanted(self) -> list[str]:
        names = [name.strip().lower() for name in self.quantizations.split(",")]
        return [name for name in dict.fromkeys(names) if name not in ("", "none")]


# Not called parse_args: by that name scripts/submit.py knows a template that trains, and asks it for its data set.
def read_arguments(argv: list[str] | None = None) -> Settings:
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
    if not settings.adapter:
        yield "--adapter is needed: the Hub id or the folder of what templates/sft.py made"
    if unknown := [name for name in settings.wanted if name not in QUANTIZATIONS]:
        yield f"--quantizations does not know {', '.join(unknown)}; it knows {', '.join(QUANTIZATIONS)} and none"
    if not 0 <= settings.min_agreement <= 1:
        yield f"--min-agreement is a share from 0 to 1, not {settings.min_agreement}"
    if settings.compare_tokens < 1:
        yield f"--compare-tokens must be at least 1, not {settings.compare_tokens}"
    if settings.output_repo and settings.output_repo.count("/") != 1:
        yield f"--output-repo is OWNER/NAME, not {settings.output_repo!r}"
    if settings.prompts and not Path(settings.prompts).is_file():
        yield f"--prompts names no file: {settings.prompts}"


class Stop(Exception):
    """The export cannot go on, for a reason its user can mend: a code, what is wrong, and what to do about it."""

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


# JSON leaves these as they are, and some readers end a line there: an event is one line.
SEPARATORS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}


def emit(event: str, **values: Any) -> None:
    """One line for status, logs and people, without secrets."""
    line = json.dumps({"event": event, "time": round(time.time(), 1), **values}, ensure_ascii=False, default=str)
    print("EVENT " + redacted(line.translate(SEPARATORS)), flush=True)


def print_traceback() -> None:
    """The traceback of the exception at hand, none of whose lines can be taken for an event: it may quote a model's files."""
    print(redacted(traceback.format_exc()).replace("EVENT {", "EVENT: {"), file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------------
# The adapter and the model under it.

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
TOKENIZER_FILES = [
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "chat_template*", "additional_chat_templates/*",
]  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """An adapter on this machine's disk and what it says of its base. fingerprint: of all that its merge depends on."""

    folder: Path
    base: str
    base_revision: str | None
    fingerprint: str


def find_adapter(settings: Settings) -> Adapter:
    """The adapter's own few files, here. Raises Stop where they are not a LoRA adapter on a model that can be had."""
    folder = Path(os.path.expanduser(settings.adapter))
    if not folder.is_dir():
        folder = download(settings.adapter, settings.adapter_revision or None, [WEIGHTS, CONFIG, "README.md"])
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise Stop("no_adapter", f"{settings.adapter} has no {missing[0]}.", "Pass what templates/sft.py made as --adapter.")
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    if config.get("peft_type") != "LORA":
        raise Stop("not_lora", f"The adapter is {config.get('peft_type')}, not LORA.", "Only LoRA adapters can be merged here.")
    base = settings.base_model or config.get("base_model_name_or_path") or ""
    if not Path(base).is_dir() and base.count("/") != 1:
        raise Stop("no_base_model", f"The adapter's base model {base!r} is not on this machine.", "Pass --base-model.")
    revision = settings.base_model_revision or (None if settings.base_model else config.get("revision"))
    content = (folder / WEIGHTS).read_bytes() + f"{base}@{revision}".encode()
    return Adapter(folder, base, revision, hashlib.sha256(content).hexdigest())


def download(repo: str, revision: str | None, patterns: list[str]) -> Path:
    """Files of a model repository, here. Raises Stop where it cannot be read."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError) as error:
        raise Stop(
            "not_found",
            f"{repo} cannot be read: {error}",
            "Correct the id; for a private or gated one, ask for access and log in with `hf auth login`.",
        ) from error


def base_files(adapter: Adapter) -> Path:
    """The base's configuration and tokenizer, without its weights. Raises Stop where those cannot be merged into."""
    folder = Path(adapter.base)
    if not folder.is_dir():
        folder = download(adapter.base, adapter.base_revision, ["config.json", "generation_config.json", *TOKENIZER_FILES])
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if quantized := config.get("quantization_config"):
        raise Stop(
            "quantized_base",
            f"The weights of {adapter.base} are quantised ({quantized.get('quant_method')}); merging needs 16 bits.",
            "Pass the original 16-bit model as --base-model.",
        )
    return folder


def base_bytes(adapter: Adapter) -> int:
    """The size of the base's weights."""
    from huggingface_hub import HfApi

    if Path(adapter.base).is_dir():
        return sum(path.stat().st_size for path in Path(adapter.base).glob("model*.safetensors"))
    files = HfApi().model_info(adapter.base, revision=adapter.base_revision, files_metadata=True).siblings
    return sum(
        file.size or 0 for file in files or () if file.rfilename.startswith("model") and file.rfilename.endswith(".safetensors")
    )


def require_disk(folder: Path, needed: int, step: str) -> None:
    """Stop before a step that would fill the disk half-way."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Stop(
            "disk_full",
            f"{step} needs {needed / 1e9:.1f} GB of disk, and {folder} has {free / 1e9:.1f} GB left.",
            "Choose a flavor with more disk, or another --save-local. What is pushed by now is not made again.",
        )


# ---------------------------------------------------------------------------------------------------------------
# Results: a folder here and a repository on the Hub, with a record of what was made from which adapter.

RECORD = "export.json"


@dataclass
class Result:
    """One kind of result. record: {"adapter": fingerprint, "made": {what: figures}, ...}, kept beside the files."""

    folder: Path
    repo: str | None
    api: Any
    record: dict[str, Any]

    def has(self, what: str) -> bool:
        return what in self.record["made"]

    def save(self) -> None:
        (self.folder / RECORD).write_text(json.dumps(self.record, indent=1, ensure_ascii=False), encoding="utf-8")

    def keep(self, what: str, figures: Mapping[str, Any], files: list[str], card: str) -> None:
        """Record what was made, and push it with its card in one commit. Raises Stop when it does not get there."""
        self.record["made"][what] = dict(figures)
        self.save()
        (self.folder / "README.md").write_text(card, encoding="utf-8")
        if self.api is None:
            return
        try:
            self.api.upload_folder(
                repo_id=self.repo,
                folder_path=self.folder,
                commit_message=f"{what} and card",
                allow_patterns=[*files, RECORD, "README.md"],
            )
        except Exception as error:  # the network's errors and the Hub's have no ancestor in common
            raise Stop(
                "push_failed",
                f"{self.folder} did not reach {self.repo}: {type(error).__name__}: {error}",
                "Run the same command again: what is pushed by now is not made again.",
            ) from error
        emit("pushed", what=what, repo=self.repo, url=f"{self.api.endpoint}/{self.repo}")

    def fetch(self, pattern: str) -> Path:
        """The folder, with the files that an earlier run pushed."""
        if self.api is not None and not any(self.folder.glob(pattern)):
            self.api.snapshot_download(self.repo, local_dir=self.folder)
        return self.folder


def open_result(settings: Settings, adapter: Adapter, kind: str) -> Result:
    """The folder and the repository of a result, with a first commit: a push that cannot work fails now. Raises Stop."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    local = Path(os.path.expanduser(settings.adapter))
    repo = settings.output_repo or ("" if local.is_dir() else settings.adapter)
    if not repo and os.environ.get("JOB_ID"):
        raise Stop(
            "no_output_repo",
            "A job's disk is gone when it ends, and no repository is named for the result.",
            "Pass --output-repo YOU/NAME.",
        )
    folder = Path(settings.save_local) / f"{(repo or local.resolve().name).split('/')[-1]}-{kind}"
    folder.mkdir(parents=True, exist_ok=True)
    api = HfApi() if repo else None
    result = Result(folder, f"{repo}-{kind}" if repo else None, api, {})
    try:
        if api and result.repo:
            api.create_repo(result.repo, private=not settings.public, exist_ok=True)
            if api.file_exists(result.repo, RECORD):
                api.hf_hub_download(result.repo, RECORD, local_dir=folder)
            else:
                (folder / RECORD).unlink(missing_ok=True)  # of a repository that is gone
        result.record = earlier_record(folder, adapter, settings.again)
        result.save()
        if api and result.repo:
            api.upload_file(
                path_or_fileobj=folder / RECORD, path_in_repo=RECORD, repo_id=result.repo, commit_message="Export begins"
            )
    except HfHubHTTPError as error:
        raise Stop(
            "push_denied",
            f"{result.repo} cannot be written to: {error}",
            "Use a token with write permission for this owner, or pass --output-repo YOU/NAME.",
        ) from error
    return result


def earlier_record(folder: Path, adapter: Adapter, again: bool) -> dict[str, Any]:
    """What an earlier run made from this very adapter; nothing where that was another one."""
    path = folder / RECORD
    found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if again or found.get("adapter") != adapter.fingerprint:
        return {"adapter": adapter.fingerprint, "made": {}}
    return found


# ---------------------------------------------------------------------------------------------------------------
# Comparison: the adapter answers some questions greedily; a conversion should pick the same token after each prefix.
#
# A model is two things here: tokens(text) with its own tokenizer, and logits(ids), a row for each of them. A tokenizer
# that was converted wrongly so shows in the same figure as weights that were.


class Transformers:
    """A model of the transformers library."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model.eval(), tokenizer

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def logits(self, ids: list[int]) -> Any:
        import torch

        with torch.inference_mode():
            return self.model(torch.tensor([ids])).logits[0].float().numpy()

    def answer(self, ids: list[int], length: int, stops: list[int]) -> list[int]:
        import torch

        prompt = torch.tensor([ids])
        with torch.inference_mode():
            output = self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=length,
                do_sample=False,
                repetition_penalty=1.0,  # some models ask for one, and llama.cpp's plain arg max has none
                eos_token_id=stops,
                pad_token_id=stops[0] if stops else 0,
            )
        return output[0, len(ids) :].tolist()


class LlamaCpp:
    """A GGUF file in llama.cpp."""

    def __init__(self, path: Path, context: int):
        from llama_cpp import Llama

        self.llama = Llama(
            str(path),
            n_ctx=context,
            n_batch=context,
            n_ubatch=context,
            n_threads=os.cpu_count(),
            logits_all=True,
            verbose=False,
        )

    def tokens(self, text: str) -> list[int]:
        return self.llama.tokenize(text.encode(), add_bos=False, special=True)

    def text(self, ids: list[int]) -> str:
        return self.llama.detokenize(ids).decode("utf-8", "replace").strip()

    def logits(self, ids: list[int]) -> Any:
        self.llama.reset()
        self.llama.eval(ids)
        return self.llama.scores[: len(ids)]

    def answer(self, ids: list[int], length: int, stops: list[int]) -> list[int]:
        answer = [int(self.logits(ids)[-1].argmax())]
        while len(answer) < length and answer[-1] not in stops:
            self.llama.eval(answer[-1:])
            answer.append(int(self.llama.scores[self.llama.n_tokens - 1].argmax()))
        return answer


def questions(settings: Settings, adapter: Adapter) -> list[str]:
    """What is asked: the user's own, or the question that the adapter's card shows and a few about anything."""
    if settings.prompts:
        return [line.strip() for line in Path(settings.prompts).read_text("utf-8").splitlines() if line.strip()]
    return [*card_questions(adapter.folder / "README.md"), *QUESTIONS]


def card_questions(card: Path) -> list[str]:
    """The held-out questions that templates/sft.py shows in its card, without the chat's own words around them."""
    text = card.read_text("utf-8") if card.is_file() else ""
    section = text.partition("## Held-out questions\n")[2].partition("\n## ")[0]
    quoted = re.findall(r"(?m)(?:^>.*\n)+", section)
    found = [html.unescape(re.sub(r"(?m)^> ?| +$", "", block)).strip() for block in quoted]
    return [re.sub(r"^(user\n|\[INST\] ?)|(\n(assistant|model)| ?\[/INST\])$", "", question).strip() for question in found]


def as_prompt(tokenizer: Any, question: str) -> str:
    """The text that the model is to continue, with all its special tokens in clear."""
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": question}]
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    begins = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    return (tokenizer.bos_token if begins else "") + question


def stop_tokens(model: Any, tokenizer: Any) -> list[int]:
    said = model.generation_config.eos_token_id
    found = [*(said if isinstance(said, list) else [said]), tokenizer.eos_token_id]
    return [token for token in dict.fromkeys(found) if token is not None]


def ask(model: Any, tokenizer: Any, asked: list[str], length: int) -> dict[str, Any]:
    """The adapter's own answers: {"asked", "length", "stops", "context", "perplexity", "answers": [...]}."""
    adapted, stops = Transformers(model, tokenizer), stop_tokens(model, tokenizer)
    answers, context = [], 0
    for question in asked:
        prompt = as_prompt(tokenizer, question)
        prompt_ids = adapted.tokens(prompt)
        ids = adapted.answer(prompt_ids, length, stops)
        answers.append({"prompt": prompt, "prompt_ids": prompt_ids, "ids": ids, "text": adapted.text(ids)})
        context = max(context, len(prompt_ids) + length)
    reference = {"asked": asked, "length": length, "stops": stops, "context": context + 64, "answers": answers}
    return reference | {"perplexity": follow(adapted, reference)[1]}


def follow(model: Transformers | LlamaCpp, reference: Mapping[str, Any]) -> tuple[float, float]:
    """The share of the reference's tokens that a model would pick too, and its perplexity on them."""
    import numpy as np

    same, surprise, total = 0, 0.0, 0
    for answer in reference["answers"]:
        prompt, ids = model.tokens(answer["prompt"]), np.array(answer["ids"])
        rows = model.logits([*prompt, *answer["ids"]])[len(prompt) - 1 : -1].astype(np.float64)
        rows = rows - rows.max(axis=1, keepdims=True)
        same += int((rows.argmax(axis=1) == ids).sum())
        surprise += float((np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(ids)), ids]).sum())
        total += len(ids)
    return same / total, math.exp(surprise / total)


def compare(what: str, model: Transformers | LlamaCpp, reference: Mapping[str, Any], least: float) -> dict[str, Any]:
    """Figures of a conversion against the adapter, as an event too. Raises Stop where they are too far apart."""
    agreement, perplexity = follow(model, reference)
    texts = [
        model.text(model.answer(model.tokens(answer["prompt"]), reference["length"], reference["stops"]))
        for answer in reference["answers"]
    ]
    figures = {
        "agreement": round(agreement, 4),
        "perplexity": round(perplexity, 4),
        "adapter_perplexity": round(reference["perplexity"], 4),
        "same_answers": sum(text == answer["text"] for text, answer in zip(texts, reference["answers"], strict=True)),
        "answers": len(texts),
        "tokens": sum(len(answer["ids"]) for answer in reference["answers"]),
    }
    example = {"question": reference["asked"][0], "adapter": reference["answers"][0]["text"], "converted": texts[0]}
    emit("compared", what=what, **figures, example=example)
    if other := sum(model.tokens(answer["prompt"]) != answer["prompt_ids"] for answer in reference["answers"]):
        emit(
            "warning",
            code="tokens_differ",
            message=f"{what} splits {other} of {len(texts)} prompts into other tokens than the model learned from.",
        )
    if agreement < least:
        raise Stop(
            "conversion_disagrees",
            f"{what} picks the adapter's token in {agreement:.1%} of {figures['tokens']} cases; {least:.0%} is the least.",
            "It is not pushed, and the adapter is as it was. Choose a finer quantisation such as q8_0, or read the answers "
            "in the `compared` event and lower --min-agreement.",
        )
    return figures


# ---------------------------------------------------------------------------------------------------------------
# Merge.


def load_adapted(adapter: Adapter) -> Any:
    """The base in 16 bits with the adapter on it, not merged yet."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(adapter.base, revision=adapter.base_revision, dtype=torch.bfloat16)
    return PeftModel.from_pretrained(base, adapter.folder)


def merge(adapted: Any, files: Path, folder: Path) -> None:
    """Fold the adapter into the weights, and write them beside the base's own tokenizer, byte for byte."""
    adapted.merge_and_unload(safe_merge=True).save_pretrained(folder)  # safe: stops where a weight becomes NaN
    for pattern in TOKENIZER_FILES:
        for source in files.glob(pattern):
            target = folder / source.relative_to(files)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)


def load_merged(folder: Path, tokenizer: Any) -> Transformers:
    """What was written, as a user will load it."""
    import torch
    from transformers import AutoModelForCausalLM

    return Transformers(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16), tokenizer)


# ---------------------------------------------------------------------------------------------------------------
# GGUF, by llama.cpp's own converter and library.


def llama_cpp_source(folder: Path) -> Path:
    """llama.cpp's source tree, of the very version that quantises: from llama-cpp-python's archive. Raises Stop."""
    version = importlib.metadata.version("llama-cpp-python")
    tree = folder / f"llama_cpp_python-{version}" / "vendor" / "llama.cpp"
    if not tree.is_dir():
        command = ["download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python", f"llama-cpp-python=={version}"]
        done = run_tool([sys.executable, "-m", "pip", *command, "--dest", str(folder)])
        if done.returncode:
            raise Stop("no_converter", f"llama.cpp cannot be downloaded: {last_line(done.stderr)}", "Try again in a minute.")
        shutil.unpack_archive(next(folder.glob("llama_cpp_python-*.tar.gz")), folder, filter="data")
    return tree


def run_tool(command: list[str]) -> subprocess.CompletedProcess:
    """A program that has no business with the user's token."""
    env = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")}
    return subprocess.run(command, env=env, capture_output=True, text=True)


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["(it said nothing)"])[-1]


def convert(source: Path, model: Path, target: Path, *options: str) -> None:
    """Run llama.cpp's converter. Raises Stop with what it said."""
    done = run_tool([sys.executable, str(source / "convert_hf_to_gguf.py"), str(model), "--outfile", str(target), *options])
    if done.returncode == 0:
        return
    print(done.stderr, file=sys.stderr)
    said = last_line(done.stderr)
    alone = "For the merged model alone: --quantizations none."
    if "pre-tokenizer was not recognized" in done.stderr:
        raise Stop(
            "unknown_tokenizer", "llama.cpp does not know this model's tokenizer, so no GGUF would read text right.", alone
        )
    if "is not supported" in done.stderr:
        raise Stop("unsupported_model", f"llama.cpp cannot run this model: {said}", alone)
    raise Stop("conversion_failed", f"llama.cpp's converter failed: {said}", f"The log above has all it said. {alone}")


def require_convertible(source: Path, files: Path, scratch: Path) -> None:
    """Stop before the download of the weights where the converter knows not the architecture or the tokenizer."""
    model = scratch / "vocabulary"
    shutil.copytree(files, model, dirs_exist_ok=True, ignore=lambda _, names: [n for n in names if n.endswith(".safetensors")])
    convert(source, model, scratch / "vocabulary.gguf", "--vocab-only")


def quantize(source: Path, target: Path, name: str) -> None:
    """Run llama.cpp's quantisation, the function that llama-quantize calls. Raises Stop where it fails."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name.upper()}")
    params.nthread = os.cpu_count() or 1
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), params):
        raise Stop("quantization_failed", f"llama.cpp could not make {name}.", "The log above says why.")


def compare_gguf(what: str, path: Path, reference: Mapping[str, Any], least: float) -> dict[str, Any]:
    model = LlamaCpp(path, reference["context"])
    try:
        return compare(what, model, reference, least)
    finally:
        model.llama.close()


# ---------------------------------------------------------------------------------------------------------------
# Cards.


def table(made: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        f"| {figures.get('file', what)} | {figures['gigabytes']:.2f} GB | {figures['agreement']:.1%} | "
        f"{figures['adapter_perplexity']:.3f} → {figures['perplexity']:.3f} | {figures['same_answers']} of {figures['answers']} |"
        for what, figures in made.items()
    ]
    head = "| | size | same next token | perplexity, adapter → this | same answer |\n|---|---|---|---|---|\n"
    return head + "\n".join(rows)


def card(title: str, base_model: str | None, relation: str, library: str, parts: list[str]) -> str:
    from huggingface_hub import ModelCardData

    header = ModelCardData(
        base_model=base_model,
        base_model_relation=relation if base_model else None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=["lora", "hf_jobs"],
    )
    return "\n\n".join([f"---\n{header.to_yaml()}\n---", f"# {title}", *parts]) + "\n"


COMPARED = """## Compared with the adapter

The adapter answered {questions} questions greedily, {tokens} tokens in all. *Same next token*: how often this model, after the
same beginning, picks the token that the adapter picked. *Perplexity*: on those answers."""


def compared_part(made: Mapping[str, Mapping[str, Any]]) -> str:
    first = next(iter(made.values()))
    return COMPARED.format(questions=first["answers"], tokens=first["tokens"]) + "\n\n" + table(made)


MERGED_USE = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{where}", dtype="bfloat16")
tokenizer = AutoTokenizer.from_pretrained("{where}")
```"""


def shown(name: str) -> str:
    """A model as a reader of the card needs it: of a path on this machine, the last part only."""
    return Path(name).name if Path(name).exists() else name


def merged_card(result: Result, settings: Settings, adapter: Adapter) -> str:
    where = result.repo or str(result.folder)
    says = f"`{shown(adapter.base)}` with the LoRA adapter `{shown(settings.adapter)}` folded in, in 16 bits."
    base = None if Path(adapter.base).exists() else adapter.base
    parts = [says, compared_part(result.record["made"]), MERGED_USE.format(where=where)]
    return card(Path(where).name, base, "finetune", "transformers", parts)


LAPTOP = """## On a laptop

[llama.cpp](https://github.com/ggml-org/llama.cpp), which downloads the file itself (for a private repository `HF_TOKEN` must be set):

```bash
llama-cli -hf {repo}:{tag}
```

[Ollama](https://ollama.com) (for a private repository, add Ollama's key to your Hub account: https://huggingface.co/docs/hub/ollama):

```bash
ollama run hf.co/{repo}:{tag}
```

[LM Studio](https://lmstudio.ai):

```bash
hf download {repo} {file} --local-dir .
lms import {file}
```"""

FROM_FILE = """## On a laptop

[llama.cpp](https://github.com/ggml-org/llama.cpp): `llama-cli -m {file}`. [LM Studio](https://lmstudio.ai): `lms import {file}`.
[Ollama](https://ollama.com): `echo "FROM ./{file}" > Modelfile && ollama create {name} -f Modelfile && ollama run {name}`."""

PHONE = """## On a phone

Any app that runs llama.cpp takes `{file}`: [PocketPal AI](https://github.com/a-ghorbani/pocketpal-ai) (Android, iOS) opens it from
the phone's storage."""

LEAP = """

In an app of your own, Liquid AI's [LEAP SDK](https://docs.liquid.ai/deployment/on-device/sdk/model-loading) (Android, iOS) loads
`{file}` with `loadSimpleModel`."""


def gguf_card(result: Result, settings: Settings, adapter: Adapter, merged: Result, kind: str) -> str:
    made = result.record["made"]
    file = next(iter(made.values()))["file"]
    values = {
        "repo": result.repo,
        "file": file,
        "tag": file.rsplit("-", 1)[1].removesuffix(".gguf"),
        "name": Path(file).stem.lower(),
    }
    says = f"GGUF files of `{shown(adapter.base)}` with the LoRA adapter `{shown(settings.adapter)}`, made by llama.cpp."
    laptop, phone = LAPTOP if result.repo else FROM_FILE, PHONE + (LEAP if kind.startswith("lfm2") else "")
    parts = [says, laptop.format(**values), phone.format(**values), compared_part(made)]
    return card(Path(result.repo or result.folder).name, merged.repo, "quantized", "gguf", parts)


# ---------------------------------------------------------------------------------------------------------------
# The whole way.


def gigabytes(*paths: Path) -> float:
    return round(sum(path.stat().st_size for path in paths) / 1e9, 6)


def make_merged(settings: Settings, adapter: Adapter, files: Path, result: Result) -> dict[str, Any]:
    """The merged model, compared and pushed, unless it is there. Returns the adapter's own answers."""
    from transformers import AutoTokenizer

    asked = questions(settings, adapter)
    reference = result.record.get("reference") or {}
    known = (reference.get("asked"), reference.get("length")) == (asked, settings.compare_tokens)
    if known and result.has("merged"):
        return reference
    size = base_bytes(adapter)
    cached = 0 if Path(adapter.base).is_dir() else size
    require_disk(result.folder, size + cached, "Merging")
    tokenizer = AutoTokenizer.from_pretrained(files)
    adapted = load_adapted(adapter)
    reference = ask(adapted, tokenizer, asked, settings.compare_tokens)
    result.record["reference"] = reference
    emit("reference", answers=len(asked), tokens=sum(len(answer["ids"]) for answer in reference["answers"]))
    if not result.has("merged"):
        merge(adapted, files, result.folder)
        del adapted  # before the copy of it is loaded
        gc.collect()
        weights = sorted(result.folder.glob("model*.safetensors"))
        emit("merged", path=str(result.folder), gigabytes=gigabytes(*weights))
        figures = compare("merged", load_merged(result.folder, tokenizer), reference, settings.min_agreement)
        gc.collect()
        result.record["made"]["merged"] = figures | {"gigabytes": gigabytes(*weights)}
        keep = ["*.json", "*.safetensors", *TOKENIZER_FILES]
        result.keep("merged", result.record["made"]["merged"], keep, merged_card(result, settings, adapter))
    return reference


def make_ggufs(
    settings: Settings, adapter: Adapter, source: Path, merged: Result, result: Result, reference: Mapping[str, Any]
) -> None:
    """Each quantisation that is not there yet: made, compared and pushed, one after the other."""
    missing = [name for name in settings.wanted if not result.has(name)]
    if not missing:
        return
    model = merged.fetch("model*.safetensors")
    size = sum(path.stat().st_size for path in model.glob("model*.safetensors"))
    kind = json.loads((model / "config.json").read_text("utf-8")).get("model_type", "")
    name = result.folder.name.removesuffix("-GGUF")
    whole = result.folder / f"{name}-BF16.gguf"
    require_disk(result.folder, size, "Converting")
    convert(source, model, whole, "--outtype", "bf16")
    emit("converted", what="bf16", path=str(whole), gigabytes=gigabytes(whole))
    # Compared before it is quantised, so that a fault of the converter is not taken for one of the quantisation.
    whole_figures = compare_gguf("bf16", whole, reference, settings.min_agreement)
    for what in missing:
        target = result.folder / f"{name}-{what.upper()}.gguf"
        figures = whole_figures
        if target != whole:
            require_disk(result.folder, size, f"Making {what}")
            quantize(whole, target, what)
            emit("converted", what=what, path=str(target), gigabytes=gigabytes(target))
            figures = compare_gguf(what, target, reference, settings.min_agreement)
        result.record["made"][what] = figures | {"file": target.name, "gigabytes": gigabytes(target)}
        made = result.record["made"][what]
        result.keep(what, made, [target.name], gguf_card(result, settings, adapter, merged, kind))
    if "bf16" not in settings.wanted:
        whole.unlink()


def export(settings: Settings) -> None:
    began = time.monotonic()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "llama-cpp-python")}
    emit("plan", settings=asdict(settings), cpus=os.cpu_count(), versions=versions)

    # ---- what can fail for free comes first: the adapter, the repositories, what llama.cpp knows
    adapter = find_adapter(settings)
    files = base_files(adapter)
    merged = open_result(settings, adapter, "merged")
    ggufs = open_result(settings, adapter, "GGUF") if settings.wanted else None
    scratch = Path(settings.save_local) / "scratch"
    scratch.mkdir(exist_ok=True)
    if ggufs:
        source = llama_cpp_source(scratch)
        require_convertible(source, files, scratch)

    # ---- then each result, pushed before the next one is begun
    reference = make_merged(settings, adapter, files, merged)
    if ggufs:
        make_ggufs(settings, adapter, source, merged, ggufs, reference)
    shutil.rmtree(scratch)
    results = [result for result in (merged, ggufs) if result]
    emit(
        "done",
        made={what: figures["agreement"] for result in results for what, figures in result.record["made"].items()},
        paths=[str(result.folder.resolve()) for result in results],
        repos=[result.repo for result in results if result.repo],
        duration_s=round(time.monotonic() - began, 1),
    )


def main() -> int:
    settings = read_arguments()
    if not sys.stderr.isatty():  # in a log, each refresh of a progress bar is a line
        os.environ.setdefault("TQDM_MININTERVAL", "30")
    try:
        export(settings)
    except Stop as stop:
        emit("failed", code=stop.code, message=stop.message, fix=stop.fix)
        return 1
    except Exception as error:
        emit("failed", code="error", message=f"{type(error).__name__}: {error}", fix="The log has the traceback.")
        print_traceback()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
