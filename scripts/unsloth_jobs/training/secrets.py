"""What must never be shown: tokens and passwords by their shape, and what steers a terminal."""

from __future__ import annotations

import os
import re

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
    if len(text) < SHORTEST_SECRET:
        return text
    found = starred(text)
    visible = UNSHOWN.sub("", found)
    return found if visible == found or starred(visible) == visible else starred(visible)


def cut_out(text: str, value: str) -> str:
    """text without this secret, which may be one of the Hub's."""
    return text.replace(value, "hf_***" if value.startswith("hf_") else "***")


def starred(text: str) -> str:
    """text with *** in the place of each secret as it stands."""
    for value in own_secrets():
        text = cut_out(text, value)
    return SECRETS.sub(lambda match: (match[match.lastgroup] if match.lastgroup else "") + "***", text)


def quotation(text: str, most: int = 500) -> str:
    """What a log or a model's files say, as data: on one line and between quotation marks that it does not close itself."""
    line = " ".join(text.split()).translate(dict.fromkeys(map(ord, "“”"), '"'))
    return f"“{line[:most] + '…' * (len(line) > most)}”"
