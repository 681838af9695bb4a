"""Make stdlib-docs.jsonl: questions about functions of Python's standard library, answered by their docstrings.

    python demo/make_rows.py            # writes demo/stdlib-docs.jsonl

The text is CPython's own documentation (Copyright Python Software Foundation, PSF License Version 2). The file in
the repository was made with the Python version that its first line's `source` names.
"""

import importlib
import inspect
import json
import platform
import random
import re
from pathlib import Path

MODULES = [
    "bisect",
    "calendar",
    "collections",
    "contextlib",
    "copy",
    "csv",
    "datetime",
    "decimal",
    "difflib",
    "fractions",
    "functools",
    "glob",
    "gzip",
    "hashlib",
    "heapq",
    "html",
    "inspect",
    "io",
    "itertools",
    "json",
    "locale",
    "logging",
    "math",
    "mimetypes",
    "operator",
    "os",
    "os.path",
    "pathlib",
    "pickle",
    "pprint",
    "random",
    "re",
    "shlex",
    "shutil",
    "signal",
    "socket",
    "statistics",
    "string",
    "struct",
    "subprocess",
    "tempfile",
    "textwrap",
    "threading",
    "time",
    "tokenize",
    "traceback",
    "types",
    "typing",
    "unicodedata",
    "urllib.parse",
    "uuid",
    "warnings",
    "weakref",
    "zipfile",
    "zlib",
]
QUESTIONS = ("What does {name} do?", "Explain {name} in Python.", "How is {name} used?", "Describe {name}.")
ROWS, SEED = 320, 7


def documented() -> list[tuple[str, str]]:
    """(qualified name, first paragraph of its docstring) for each public callable that says something."""
    found = {}
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name, value in sorted(vars(module).items()):
            text = inspect.getdoc(value) if callable(value) and not name.startswith("_") else None
            if not text or getattr(value, "__module__", None) not in (module_name, module.__name__):
                continue
            paragraphs = [p for p in re.split(r"\n\s*\n", text) if "->" not in p.splitlines()[0]]
            paragraph = " ".join(paragraphs[0].split()) if paragraphs else ""
            if 40 <= len(paragraph) <= 400:
                found.setdefault(paragraph, f"{module_name}.{name}")
    return [(name, text) for text, name in found.items()]


def main() -> None:
    chance = random.Random(SEED)
    entries = sorted(documented())
    chance.shuffle(entries)
    path = Path(__file__).with_name("stdlib-docs.jsonl")
    with path.open("w", encoding="utf-8") as file:
        for name, text in entries[:ROWS]:
            question = chance.choice(QUESTIONS).format(name=name)
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
            row = {"messages": turns, "source": f"CPython {platform.python_version()} docstring of {name}, PSF-2.0"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{min(len(entries), ROWS)} rows in {path}")


if __name__ == "__main__":
    main()
