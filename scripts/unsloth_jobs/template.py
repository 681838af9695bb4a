"""A template's own functions and settings, from its file: what check sees is what the job does."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from huggingface_hub import get_token

from .errors import USAGE, UserError
from .output import visible
from .redaction import SECRETS

TOKEN = re.compile(r"hf_(?:oauth_)?[A-Za-z0-9]{30,}")  # whole ones only: hf_finetuned is a name
LEAVE_OUT = "Leave it out: the job gets the token of `hf auth login` or HF_TOKEN as a secret."
SFT = Path(__file__).resolve().parents[2] / "templates" / "sft.py"


def load(path: Path = SFT) -> ModuleType:
    """The template as a module. Its heavy imports stand inside functions, so this needs no torch. Raises UserError."""
    if not path.is_file():
        raise UserError("no_script", f"There is no script {path}.", f"Pass the path of a script, {SFT} for one.", USAGE)
    loader = SourceFileLoader(f"template_{path.stem}", str(path))
    module = ModuleType(loader.name)
    module.__file__ = loader.path
    sys.modules[loader.name] = module  # dataclasses look their module up by name
    try:
        loader.exec_module(module)
    except Exception as error:
        raise UserError(
            "bad_script",
            f"{path} cannot be read: {type(error).__name__}: {error}",
            "Keep heavy imports inside functions, as templates/sft.py does.",
            USAGE,
        ) from error
    return module


def holds_token(text: str, in_code: bool = False) -> bool:
    """Whether a text holds a secret: the Hub's own token, or one that any service's tokens look like.

    In code `password: str` is no password: there only what a token's own shape tells counts.
    """
    token = get_token()
    others = (match for match in SECRETS.finditer(text) if match.lastgroup != "hub" and not (in_code and match.lastgroup))
    return bool(TOKEN.search(text) or (token and token in text) or next(others, None))


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
                "Type it anew: an id or a path has none.",
                USAGE,
            )


def require_no_token(script: Path) -> None:
    """Raises UserError (usage) where a token is written in a script, which is uploaded as it stands."""
    if holds_token(script.read_text("utf-8"), in_code=True):
        raise UserError(
            "token_in_script", f"A token is written in {script}, which the job's storage would keep.", LEAVE_OUT, USAGE
        )


def settings(module: ModuleType, arguments: list[str]) -> Any:
    """The template's Settings for these arguments. Raises UserError (usage) with argparse's own words."""
    require_harmless(arguments)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return module.parse_args(arguments)
    except SystemExit as end:
        last = said.getvalue().strip().splitlines()[-1] if said.getvalue().strip() else "bad arguments"
        raise UserError(
            "bad_arguments",
            f"{Path(inspect.getfile(module)).name}: {last.split('error: ')[-1]}",
            f"Flags of the command go before `--`, flags of the script after it: uv run {module.__file__} --help",
            USAGE,
        ) from end
