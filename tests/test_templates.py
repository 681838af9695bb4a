"""Templates are made from recipes and shared modules, and nothing that could change a meaning is joined."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "recipes" / "build.py"
SHARED = ROOT / "scripts" / "unsloth_jobs" / "training"

HEADER = '# /// script\n# dependencies = [\n#     "torch",\n# ]\n#\n# [tool.uv]\n# ///\n"""A method."""\n'
RECIPE = "import sys\n\nfrom unsloth_jobs.training.words import word\n\n\ndef main() -> int:\n    return len(word())\n"
WORDS = '"""Words."""\n\nimport re\n\nfrom .letters import A\n\n\ndef word() -> str:\n    return re.escape(A)\n'
LETTERS = '"""Letters."""\n\nA = "a"\n'


@pytest.fixture
def build(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("build_templates", BUILD)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    for name in ("RECIPES", "SHARED", "TEMPLATES"):
        folder = tmp_path / name.lower()
        folder.mkdir()
        monkeypatch.setattr(module, name, folder)
    (module.RECIPES / "versions.toml").write_text(
        'requires-python = ">=3.11"\nexclude-newer = "2026-01-01"\n\n[packages]\ntorch = "2.10.0"\n'
    )
    (module.SHARED / "letters.py").write_text(LETTERS)
    (module.SHARED / "words.py").write_text(WORDS)
    (module.SHARED / "unneeded.py").write_text("B = 1\n")
    return module


def joined(build, recipe: str = RECIPE) -> str:
    path = build.RECIPES / "method.py"
    path.write_text(HEADER + recipe)
    return build.join(build.Module(path))


def test_the_templates_are_what_their_sources_make():
    done = subprocess.run([sys.executable, str(BUILD), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_modules_are_joined_whole_each_below_those_that_it_needs(build):
    text = joined(build)
    assert (
        '#     "torch==2.10.0",' in text and '# requires-python = ">=3.11"' in text and 'exclude-newer = "2026-01-01"' in text
    )
    assert text.index("def main") < text.index('A = "a"') < text.index("def word")  # what is special comes first
    assert "training/words.py" in text and "unneeded" not in text and "unsloth_jobs.training.words" not in text
    space: dict = {"__name__": "joined"}
    exec(compile(text, "joined.py", "exec"), space)
    assert space["main"]() == 1


def test_what_the_recipe_reads_at_import_stands_above_it(build):
    text = joined(build, RECIPE.replace("def main() -> int:", "LENGTH = len(word())\n\n\ndef main() -> int:"))
    assert text.index('A = "a"') < text.index("def word") < text.index("LENGTH =")
    exec(compile(text, "joined.py", "exec"), {"__name__": "joined"})


@pytest.mark.parametrize(
    "files, why",
    [
        ({"words.py": WORDS.replace("import A", "import A as B").replace("escape(A)", "escape(B)")}, "without an alias"),
        ({"words.py": WORDS.replace("from .letters import A", "from . import letters")}, "without an alias"),
        ({"words.py": WORDS + '\n\nA = "b"\n'}, "defined in more than one module: A"),
        ({"words.py": WORDS.replace("word() -> str", "word(A=1) -> str")}, "hide a name of the whole file"),
        ({"words.py": WORDS.replace("    return", "    main = 1\n    return")}, "hide a name of the whole file"),
        ({"words.py": WORDS.replace("    return", "    for re in []: ...\n    return")}, "hide a name of the whole file"),
        ({"letters.py": LETTERS.replace('A = "a"', 'from .words import word\n\nA = "a" if word else ""')}, "import each other"),
        ({"words.py": WORDS.replace("re.escape(A)", '"a"')}, "does not use it"),
    ],
)
def test_what_would_change_a_meaning_is_refused(build, files, why):
    for name, text in files.items():
        (build.SHARED / name).write_text(text)
    with pytest.raises(build.Refused, match=why):
        joined(build)


def test_a_template_that_is_not_fresh_is_shown_and_fails(build, capsys, monkeypatch):
    joined(build)
    monkeypatch.setattr(sys, "argv", ["build.py"])
    assert build.main() == 0
    monkeypatch.setattr(sys, "argv", ["build.py", "--check"])
    assert build.main() == 0
    (build.SHARED / "letters.py").write_text(LETTERS.replace('"a"', '"b"'))
    with pytest.raises(SystemExit, match="Not fresh: method.py. Run `make templates`."):
        build.main()
    assert '+A = "b"' in capsys.readouterr().out


def test_shared_modules_need_nothing_but_python():
    """check.py imports them, and so does a job before its libraries are installed."""
    names = ", ".join(f"unsloth_jobs.training.{path.stem}" for path in SHARED.glob("[a-z]*.py"))
    code = f"import sys; sys.path.insert(0, {str(SHARED.parents[1])!r})\nimport {names}"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)  # -S: no site-packages


def test_an_archive_holds_what_an_installed_skill_needs_and_no_more():
    packed = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        found = {Path(name).parts[0] for name in archive.getnames()}
    assert found == {
        ".claude-plugin", "AGENTS.md", "CHANGES.md", "LICENSE", "README.md", "SKILL.md", "references", "scripts", "templates",
    }  # fmt: skip
