"""The documents, and the commands that they name."""

from __future__ import annotations

import re
from collections.abc import Iterator

from conftest import ROOT

DOCUMENTS = [*ROOT.glob("*.md"), *sorted((ROOT / "references").glob("*.md"))]
MODEL, DATASET = "LiquidAI/LFM2.5-1.2B-Instruct", "mlabonne/FineTome-100k"  # as the documents name them
PLACEHOLDERS = {
    "MODEL": MODEL, "DATASET": DATASET, "SCRIPT": "templates/sft.py", "ARGUMENTS": f"--base-model {MODEL} --dataset {DATASET}",
    "FLAVOR": "l4x1", "F": "l4x1", "TIMEOUT": "2h", "T": "2h", "USD": "9", "N": "9", "ORGANISATION": "acme",
    "training.jsonl": "tests/openai.jsonl", "test.jsonl": "tests/openai.jsonl", "PAIRS": "ada/pairs", "PROMPTS": "ada/prompts", "COMMAND_OR_URL": "true", "OWNER": "ada", "YOU": "ada", "your-username": "ada", "NAME": "tuned",
}  # fmt: skip
PROGRAM = re.compile(  # what tells a command from other code within a sentence
    r"(uvx?|hf|make|python3?|py|pip|git|npx|npm|claude|codex|opencode|ollama|llama-\w+|mlx_lm\.\w+|curl|winget|brew|cp|mkdir|wsl"
    r"|/plugin|\$skill-installer|[\w./-]+\.(py|sh)) \S"
)


def commands_in(text: str) -> Iterator[str]:
    """Each line of the shell blocks, and the commands within sentences."""
    blocks = re.compile(r"(?ms)^ *```(?:bash|powershell|)\n(.*?)^ *```")
    for block in blocks.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if said := re.sub(r"(^|\s)#.*", "", line).strip():
                yield said
    yield from (span for span in re.findall(r"`([^`\n]+)`", blocks.sub("", text)) if PROGRAM.match(span))


def filled(command: str) -> str:
    """The command as it is run from the skill's folder, but for JOB, which each run gets anew."""
    names = "|".join(map(re.escape, PLACEHOLDERS))
    known = re.sub(rf"(?<![\w.-])({names})(?![\w.-])", lambda found: PLACEHOLDERS[found[1]], command.replace("SKILL/", ""))
    return " ".join(re.sub(r"^uv run (?=scripts/)|^uvx (?=hf )", "", known).removeprefix("scripts/").split())


COMMANDS = sorted({filled(command) for document in DOCUMENTS for command in commands_in(document.read_text("utf-8"))})
OURS = re.compile(r"(check|estimate|submit|status|logs|serve)\.py ")


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text))
