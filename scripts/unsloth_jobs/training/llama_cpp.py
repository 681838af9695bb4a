"""llama.cpp's own converter and library: from a merged model to GGUF files."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

from .report import Stop


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
    return (text.strip().splitlines() or ["(no output)"])[-1]


def convert(source: Path, model: Path, target: Path, *options: str) -> None:
    """Run llama.cpp's converter. Raises Stop with its last line."""
    done = run_tool([sys.executable, str(source / "convert_hf_to_gguf.py"), str(model), "--outfile", str(target), *options])
    if done.returncode == 0:
        return
    print(done.stderr, file=sys.stderr)
    reason = last_line(done.stderr)
    alone = "For the merged model alone: --quantizations none."
    if "pre-tokenizer was not recognized" in done.stderr:
        raise Stop(
            "unknown_tokenizer", "llama.cpp does not know this model's tokenizer, so no GGUF would read text right.", alone
        )
    if "is not supported" in done.stderr:
        raise Stop("unsupported_model", f"llama.cpp cannot run this model: {reason}", alone)
    raise Stop("conversion_failed", f"llama.cpp's converter failed: {reason}", f"Its whole output is in the log above. {alone}")


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
