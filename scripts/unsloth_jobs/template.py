"""The template that will run, as a module: what the commands ask of it, and what it may not hold."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import logging
import math
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import is_dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Protocol, cast

from huggingface_hub import get_token

from .errors import USAGE, UserError
from .output import visible
from .training import report
from .training.columns import Format
from .training.masks import Example, Renderer
from .training.preferences import Preference
from .training.questions import Question
from .training.rewards import Rewards
from .training.secrets import SECRETS
from .training.settings import TrainingSettings


def quiet_libraries() -> None:
    """Called before datasets or transformers are imported: they read these once."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")  # what it logs it raises as well
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)  # a card without metadata is no fault


TOKEN = re.compile(r"hf_(?:oauth_)?[A-Za-z0-9]{30,}")  # whole ones only: hf_finetuned is a name
LEAVE_OUT = "Leave it out: the job gets the token of `hf auth login` or HF_TOKEN as a secret."
READERS = ("parse_args", "read_arguments")  # the second: of copies of export.py before 0.3
SFT = Path(__file__).resolve().parents[2] / "templates" / "sft.py"


class Template(Protocol):
    """What the commands take from the very file that will run: how its rows become tokens, and what its adapter reaches.

    An assistant may have edited a copy of it, so these are asked of the file. Rules that no copy may change (memory, cost,
    secrets) are imported from unsloth_jobs.training.
    """

    DIGESTED: int
    IGNORE: int

    @property
    def Stop(self) -> type[report.Stop]: ...
    def parse_args(self, argv: list[str] | None = None) -> TrainingSettings: ...

    # ---- rows
    def local_file(self, settings: TrainingSettings) -> Path | None: ...
    def scan_file(self, file: Path, keep: int, sheet: str = "") -> Any: ...
    def load_rows(self, settings: TrainingSettings, streaming: bool = False, first: float = math.inf) -> Any: ...
    def data_source(self, settings: TrainingSettings) -> dict[str, Any]: ...
    def unreadable(self, settings: TrainingSettings, error: Exception) -> report.Stop: ...
    def media_columns(self, features: Any) -> list[str]: ...
    def find_format(self, settings: TrainingSettings, columns: list[str], first: Any, media: Iterable[str]) -> Format: ...
    def normalise_row(self, row: Any, layout: Format) -> dict[str, Any]: ...
    def as_messages(self, row: Any) -> list[dict]: ...

    # ---- loss masks
    def make_renderer(self, tokenizer: Any, layout: Format) -> Renderer: ...
    def segments(self, tokenizer: Any, example: Example) -> list[dict[str, Any]]: ...
    def digest_of(self, renderer: Renderer, layout: Format, rows: Iterable[Any]) -> str: ...
    def may_pack(self, settings: TrainingSettings, config: Any) -> bool: ...

    # ---- model and adapter
    def require_decoder(self, config: Any) -> None: ...
    def adaptable(self, linears: Any) -> dict[str, tuple[int, int]]: ...
    def lora_targets(self, linears: Any, asked: str = "auto") -> list[str]: ...
    def coverage(self, linears: Any, adapted: Iterable[str]) -> float: ...
    def run_name(self, settings: TrainingSettings) -> str: ...


class PreferenceTemplate(Template, Protocol):
    """A template that learns preferences also says which they are."""

    def read_preference(self, row: Any, layout: Format) -> Preference: ...


class RewardTemplate(Template, Protocol):
    """A template that learns from rewards says which prompts it has answered, and what an answer is worth."""

    def read_prompts(
        self, rows: Iterable[Any], renderer: Renderer, layout: Format, room: int, system: str = ""
    ) -> tuple[list[Question], dict[str, int]]: ...
    def make_rewards(
        self, reward: str, reward_file: str, reward_seconds: float, answer_format: str, most_tokens: int, questions: Any
    ) -> tuple[Rewards, str]: ...
    def digest_of(  # type: ignore[override]  # of prompts as they fit
        self, renderer: Renderer, layout: Format, rows: Iterable[Any], room: int, system: str = ""
    ) -> str: ...


def load(path: Path = SFT) -> Template:
    """The template as a module. Its heavy imports stand inside functions, so this needs no torch. Raises UserError."""
    if not path.is_file():
        raise UserError("no_script", f"There is no script {path}.", f"Pass the path of a script, {SFT} for one.", USAGE)
    return load_as_it_is(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def load_as_it_is(path: Path, changed: int) -> Template:
    """A comparison asks several times for one script. changed: when its content last did, so that a later one is read anew."""
    loader = SourceFileLoader(f"template_{path.stem}", str(path))
    module = ModuleType(loader.name)
    module.__file__ = loader.path
    sys.modules[loader.name] = module  # dataclasses look their module up by name
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(
            "bad_script",
            f"{path} cannot be read: {type(error).__name__}: {error}",
            "Keep heavy imports inside functions, as templates/sft.py does.",
            USAGE,
        ) from error
    return cast(Template, module)


def takes_settings(script: Path) -> bool:
    """Whether a script has Settings and a function that reads them, as the templates have; any other is run as it is."""
    try:
        names = names_in(script, script.stat().st_mtime_ns)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError("no_script", f"{script} cannot be read: {error}", "Pass the path of a Python script.", USAGE) from error
    return "Settings" in names and not names.isdisjoint(READERS)


@functools.lru_cache(maxsize=8)
def names_in(script: Path, changed: int) -> frozenset[str]:
    """The names of a script's functions and classes. changed: see load_as_it_is. Raises OSError, SyntaxError or ValueError."""
    script.read_text("utf-8")
    code = SourceFileLoader(script.stem, str(script)).get_code(script.stem)  # compiled before, but for the first time
    return frozenset(part.co_name for part in cast(CodeType, code).co_consts if isinstance(part, CodeType))


def trains(module: Template) -> bool:
    """Whether a template trains a model on rows."""
    return method_of(module) not in ("export", "evaluate", "serve") and hasattr(module, READERS[0])


def uses_all_gpus(module: Template) -> bool:
    """Whether a template trains on all GPUs of its machine; an older copy of one does not."""
    return hasattr(module, "run_on_all_gpus")


def evaluates(module: Template) -> bool:
    return method_of(module) == "evaluate"


def serves(module: Template) -> bool:
    return method_of(module) == "serve"


def method_of(module: Template) -> str:
    return getattr(module, "METHOD", "sft")


def holds_token(text: str) -> bool:
    """Whether a text holds a secret: the Hub's own token, or one that any service's tokens look like."""
    return holds_hub_token(text) or any(match.lastgroup != "hub" for match in SECRETS.finditer(text))


def holds_hub_token(text: str) -> bool:
    token = get_token()
    return bool(TOKEN.search(text) or (token and token in text))


# Of code: the patterns are slow on a text as long as a template, and no token is shorter.
LONG_WORD = re.compile(r"[A-Za-z0-9_.+/~-]{12,}")


def code_holds_token(code: str) -> bool:
    """As holds_token; but `password: str` is no password in code, where only what a token's own shape tells counts."""
    words = " ".join(LONG_WORD.findall(code))
    return holds_hub_token(code) or any(not match.lastgroup for match in SECRETS.finditer(words))


def require_harmless(arguments: list[str]) -> None:
    """Raises UserError (usage) on arguments that no plan, log or terminal may hold: a token, or control characters."""
    for argument in arguments:
        if holds_token(argument):
            raise UserError(
                "token_in_arguments",
                "One of the arguments holds a token, and arguments are written into plans and logs.",
                LEAVE_OUT,
                USAGE,
            )
        if "\n" in argument or visible(argument) != argument:
            raise UserError(
                "control_characters",
                f"The argument {argument!r} holds control characters.",
                "Type it again: an id or a path has none.",
                USAGE,
            )


def require_no_token(script: Path) -> None:
    """Raises UserError (usage) where a token is written in a script, which is uploaded as it stands."""
    if script_holds_token(script, script.stat().st_mtime_ns):
        raise UserError(
            "token_in_script", f"A token is written in {script}, which the job's storage would keep.", LEAVE_OUT, USAGE
        )


@functools.lru_cache(maxsize=8)
def script_holds_token(script: Path, changed: int) -> bool:
    """changed: see load_as_it_is."""
    return code_holds_token(script.read_text("utf-8"))


def settings(module: Template, arguments: list[str]) -> Any:
    """The template's Settings for these arguments. Raises UserError (usage) with argparse's own words.

    Where they ask for its help, that is printed and the command ends with exit code 0.
    """
    require_harmless(arguments)
    read = next(getattr(module, name) for name in READERS if hasattr(module, name))
    script, output = Path(inspect.getfile(cast(ModuleType, module))), io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            made = read(arguments)
    except SystemExit as end:
        if not end.code:
            print(output.getvalue(), end="")
            raise
        last = output.getvalue().strip().splitlines()[-1] if output.getvalue().strip() else "bad arguments"
        raise UserError(
            "bad_arguments",
            f"{script.name}: {last.split('error: ')[-1]}",
            f"Flags of the command go before `--`, flags of the script after it: uv run {script} --help",
            USAGE,
        ) from end
    except Exception as error:
        raise not_ours(script, f"{READERS[0]} failed with {type(error).__name__}: {error}") from error
    if not is_dataclass(made):
        raise not_ours(script, f"{READERS[0]} returned no Settings")
    return made


def not_ours(script: Path, why: str) -> UserError:
    fix = f"Keep Settings and {READERS[0]} as templates/sft.py has them, or give them other names: then it is run as it is."
    return UserError("bad_script", f"{script.name}: {why}.", fix, USAGE)
