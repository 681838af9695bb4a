"""Text that may be shown: without secrets, and without what would steer the terminal that it is shown on."""

from __future__ import annotations

import functools
import os
import re

from huggingface_hub import get_token

# A group named `kept` is what makes a value a secret, and stays. Each repetition is over one class of characters, so
# that no line, however long, takes more than time in proportion to its length.
SECRET = re.compile(
    r"""
      (?P<hub> hf_ | api_org_ ) [A-Za-z0-9]{12,}                                    # Hugging Face
    | (?: (?<![A-Za-z0-9]) | (?<=[\d[]m) )                                           # not within a word, but after a colour
      sk-(?=[A-Za-z_-]{0,64}\d)[A-Za-z0-9_-]{20,}                                  # OpenAI, Anthropic
    | wandb_v1_ [A-Za-z0-9_-]{20,}
    | (?P<wandb> (?i:wandb[^\n]{0,40}?(?:key|login|password|relogin)) [\W]{1,8} ) [0-9a-f]{40} (?![0-9a-f])
    | (?<![A-Z0-9]) (?:AKIA|ASIA) [A-Z0-9]{16,}                                     # AWS
    | (?P<aws> (?i:aws_?secret_?(?:access_?)?key|secretaccesskey) \W{1,6} ) [A-Za-z0-9/+=]{40}
    | (?P<signed> X-Amz-(?:Signature|Credential|Security-Token)= ) [^&\s"'\\]+
    | gh[pousr]_ [A-Za-z0-9]{36,} | github_pat_ [A-Za-z0-9_]{22,}
    | (?P<header> (?i:authorization) ["']?\s{0,4}[:=]\s{0,4}["']? (?i:bearer|basic|token)\s{1,4} ) [^\s"',}\\]+
    | (?P<bearer> (?i:bearer)\s{1,4} ) (?=[^\s\d]{0,64}\d) [A-Za-z0-9._~+/=-]{16,}
    | (?P<user> https?://[^\s/:@]{1,64}: ) [^\s/@]{1,256} (?=@)
    | eyJ[A-Za-z0-9_-]{10,} \. [A-Za-z0-9_-]{10,} \. [A-Za-z0-9_-]{10,}             # a signed web token
    """,
    re.VERBOSE,
)
SECRET_NAME = re.compile(r"(TOKEN|_KEY|SECRET|PASSWORD)$")  # of environment variables
SHORTEST_VALUE = 8

# ECMA-48: control sequences, strings with their terminator (titles, links), escapes, then what is left of C0 and C1;
# and the marks that turn the direction of the text that follows, and halves of characters, which cannot be printed.
CONTROL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def redact(text: str) -> str:
    """text without the secrets that are known by their shape or are this process's own; errors and logs may quote one."""
    for value in own_secrets():
        text = text.replace(value, shape(value))
    return SECRET.sub(lambda found: (found[found.lastgroup] if found.lastgroup else "") + "***", text)


def plain(text: str) -> str:
    """redact, and without terminal control sequences; line breaks and tabs stay."""
    return redact(CONTROL.sub("", text))


def own_secrets() -> list[str]:
    """The values of this process's secrets, the longest first: one may hold another."""
    values = {value for name, value in os.environ.items() if SECRET_NAME.search(name)} | {stored_token() or ""}
    return sorted((value for value in values if len(value) >= SHORTEST_VALUE), key=len, reverse=True)


@functools.cache
def stored_token() -> str | None:
    """The token of `hf auth login`."""
    return get_token()


def shape(value: str) -> str:
    return "hf_***" if value.startswith("hf_") else "***"
