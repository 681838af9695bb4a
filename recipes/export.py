# /// script
# dependencies = [
#     "torch",
#     "transformers",
#     "peft",
#     "huggingface_hub",
#     "llama-cpp-python",
#     "gguf",
#     "numpy",
#     "sentencepiece",
#     "protobuf",
#     "pip",
# ]
#
# [tool.uv]
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
NAME is one of plan, warning, reference, merged, converted, compared, ollama, pushed, done, failed. Exit code 0: the models are
where the `done` event says; 1: the `failed` event says why and what to do.

llama-cpp-python is llama.cpp: its library quantises and answers, and its source archive holds the matching converter.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unsloth_jobs.training.adapter import TOKENIZER_FILES
from unsloth_jobs.training.adapter_on_base import Adapter, base_bytes, base_files, find_adapter
from unsloth_jobs.training.agreement import Transformers, answer_questions, card_questions, compare, open_gguf
from unsloth_jobs.training.export_cards import gguf_card, merged_card
from unsloth_jobs.training.flags import parse_flags
from unsloth_jobs.training.gguf_sizes import gguf_bytes
from unsloth_jobs.training.llama_cpp import convert, llama_cpp_source, quantize, require_convertible
from unsloth_jobs.training.machine import memory_bytes, versions
from unsloth_jobs.training.modelfile import working_turns, write_ollama_files
from unsloth_jobs.training.report import Stop, emit, exit_code
from unsloth_jobs.training.setting import setting

METHOD = "export"

# ---------------------------------------------------------------------------------------------------------------
# Settings: fill them in here, or pass the flag of the same name.

QUANTIZATIONS = ("bf16", "f16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q4_0", "q3_k_m", "q2_k")
QUESTIONS = (
    "What is the capital of France?",
    "Explain in two sentences how a vaccine works.",
    "Write a short poem about the sea.",
    "List three uses of a paper clip.",
)


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


# ---------------------------------------------------------------------------------------------------------------
# The run.


def export(settings: Settings) -> None:
    began = time.monotonic()
    libraries = ("torch", "transformers", "peft", "llama-cpp-python")
    emit("plan", settings=asdict(settings), cpus=os.cpu_count(), versions=versions(libraries))

    # ---- what can fail for free comes first: the adapter, the repositories, what llama.cpp knows
    adapter = find_adapter(settings.adapter, settings.adapter_revision, settings.base_model, settings.base_model_revision)
    files = base_files(adapter)
    merged = open_result(settings, adapter, "merged")
    ggufs = open_result(settings, adapter, "GGUF") if settings.wanted else None
    if not merged.has("merged"):
        missing = [name for name in settings.wanted if ggufs and not ggufs.has(name)]
        require_room(adapter, files, merged.folder, missing)
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


def make_merged(settings: Settings, adapter: Adapter, files: Path, result: Result) -> dict[str, Any]:
    """The merged model, compared and pushed, unless it is there. Returns the adapter's own answers."""
    from transformers import AutoTokenizer

    questions = find_questions(settings, adapter)
    reference = result.record.get("reference") or {}
    known = (reference.get("asked"), reference.get("length")) == (questions, settings.compare_tokens)
    if known and result.has("merged"):
        return reference
    size = base_bytes(adapter)
    cached = 0 if Path(adapter.base).is_dir() else size
    require_disk(result.folder, size + cached, "Merging")
    tokenizer = AutoTokenizer.from_pretrained(files)
    adapted = load_adapted(adapter)
    reference = answer_questions(adapted, tokenizer, questions, settings.compare_tokens)
    result.record["reference"] = reference
    emit("reference", answers=len(questions), tokens=sum(len(answer["ids"]) for answer in reference["answers"]))
    if not result.has("merged"):
        merge(adapted, files, result.folder)
        del adapted  # before the copy of it is loaded
        gc.collect()
        weights = sorted(result.folder.glob("model*.safetensors"))
        emit("merged", path=str(result.folder), gigabytes=gigabytes(*weights))
        figures = compare("merged", load_merged(result.folder, tokenizer), reference, settings.min_agreement)
        gc.collect()
        result.record["made"]["merged"] = figures | {"gigabytes": gigabytes(*weights)}
        readme = merged_card(result.repo or str(result.folder), result.record["made"], settings.adapter, adapter)
        keep = ["*.json", "*.safetensors", *TOKENIZER_FILES]
        result.keep("merged", result.record["made"]["merged"], keep, readme)
    return reference


def make_ggufs(
    settings: Settings, adapter: Adapter, source: Path, merged: Result, result: Result, reference: Mapping[str, Any]
) -> None:
    """Each quantisation that is not there yet: made, compared and pushed, one after the other."""
    from transformers import AutoTokenizer

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
    tokenizer = AutoTokenizer.from_pretrained(model)
    with open_gguf(whole, reference) as opened:
        whole_figures = compare("bf16", opened, reference, settings.min_agreement)
        turns = working_turns(opened, tokenizer, reference)
    result.record["whole"] = whole_figures | {"gigabytes": gigabytes(whole)}
    stops = [tokenizer.convert_ids_to_tokens(token) for token in reference["stops"]]
    for what in missing:
        target = result.folder / f"{name}-{what.upper()}.gguf"
        figures = whole_figures
        if target != whole:
            require_disk(result.folder, size, f"Making {what}")
            quantize(whole, target, what)
            emit("converted", what=what, path=str(target), gigabytes=gigabytes(target))
            with open_gguf(target, reference) as opened:
                figures = compare(what, opened, reference, settings.min_agreement)
        result.record["made"][what] = figures | {"file": target.name, "gigabytes": gigabytes(target)}
        made = result.record["made"][what]
        first = next(iter(result.record["made"].values()))["file"]
        ollama = write_ollama_files(result.folder, first, turns, stops)
        readme = gguf_card(result.folder, result.repo, result.record, settings.adapter, adapter, merged.repo, kind)
        result.keep(what, made, [target.name, *ollama], readme)
    if "bf16" not in settings.wanted:
        whole.unlink()


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


def find_questions(settings: Settings, adapter: Adapter) -> list[str]:
    """What is asked: the user's own, or the question that the adapter's card shows and a few about anything."""
    if settings.prompts:
        return [line.strip() for line in Path(settings.prompts).read_text("utf-8").splitlines() if line.strip()]
    return [*card_questions(adapter.folder / "README.md"), *QUESTIONS]


def require_disk(folder: Path, needed: int, step: str) -> None:
    """Stop before a step that would fill the disk half-way."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Stop(
            "disk_full",
            f"{step} needs {needed / 1e9:.1f} GB of disk, and {folder} has {free / 1e9:.1f} GB left.",
            "Choose a flavor with more disk, or another --save-local. What is pushed by now is not made again.",
        )


def require_room(adapter: Adapter, files: Path, folder: Path, missing: list[str]) -> None:
    """Stop before the weights are downloaded where this machine cannot hold them, or not what is made of them. Roughly."""
    config = json.loads((files / "config.json").read_text("utf-8"))
    stored = base_bytes(adapter)
    size = stored / 2 if "float32" in (config.get("dtype"), config.get("torch_dtype")) else stored  # in 16 bits
    downloaded = 0 if Path(adapter.base).is_dir() else stored
    made = {*missing, "bf16"} if missing else set()  # all are made from the one in bf16
    ggufs = sum(gguf_bytes(size, name) for name in made)
    require_disk(folder, int(downloaded + size + ggufs), "This export")
    memory, needed = memory_bytes(), 1.1 * size + 1e9  # the model once, and the libraries
    if memory and memory < needed:
        raise Stop(
            "too_little_memory",
            f"Merging needs about {needed / 1e9:.1f} GB of memory, and this machine has {memory / 1e9:.1f} GB.",
            "Choose a flavor with more memory: --flavor cpu-xl.",
        )


def gigabytes(*paths: Path) -> float:
    return round(sum(path.stat().st_size for path in paths) / 1e9, 6)


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

    def keep(self, what: str, figures: Mapping[str, Any], files: list[str], readme: str) -> None:
        """Record what was made, and push it with its card in one commit. Raises Stop when it does not get there."""
        self.record["made"][what] = dict(figures)
        self.save()
        (self.folder / "README.md").write_text(readme, encoding="utf-8")
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
# Flags, and how the run ends.


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


def parse_args(argv: list[str] | None = None) -> Settings:
    """Command-line flags over the defaults above. Raises SystemExit(2) on a flag or a value that is not one."""
    return parse_flags(Settings, setting_problems, __doc__, argv)


def main() -> int:
    settings = parse_args()
    return exit_code(
        lambda: export(settings), "the same command again makes what is missing: what is pushed by now is not made again"
    )


if __name__ == "__main__":
    sys.exit(main())
