"""Model cards of what export.py makes: what it is, how far it agrees with the adapter, where it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .adapter_on_base import Adapter
from .after_training import endpoint_command


def comparison_table(made: Mapping[str, Mapping[str, Any]], whole: Mapping[str, Any] | None = None) -> str:
    """Size and loss of each file. whole: the figures of the one in 16 bits that they were made of, where it is not kept."""
    kept = {"in 16 bits, not kept": whole, **made} if whole and "bf16" not in made else made
    rows = [
        f"| {figures.get('file', what)} | {figures['gigabytes']:,.3g} GB | {figures['agreement']:.1%} | "
        f"{figures['adapter_perplexity']:.3f} → {figures['perplexity']:.3f} | {figures['same_answers']} of {figures['answers']} |"
        for what, figures in kept.items()
    ]
    head = "| | size | same next token | perplexity, adapter → this | same answer |\n|---|---|---|---|---|\n"
    return head + "\n".join(rows)


def render_card(title: str, base_model: str | None, relation: str, library: str, parts: list[str]) -> str:
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


def compared_part(made: Mapping[str, Mapping[str, Any]], whole: Mapping[str, Any] | None = None) -> str:
    first = next(iter(made.values()))
    return COMPARED.format(questions=first["answers"], tokens=first["tokens"]) + "\n\n" + comparison_table(made, whole)


MERGED_USE = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{where}", dtype="bfloat16")
tokenizer = AutoTokenizer.from_pretrained("{where}")
```"""
MERGED_ELSEWHERE = """On a Mac with Apple's own processor, by [MLX](https://github.com/ml-explore/mlx-lm), in 4 bits:

```bash
pip install mlx-lm
mlx_lm.convert --hf-path {where} --mlx-path {name}-mlx -q
mlx_lm.chat --model {name}-mlx
```

At an address that stays, by Hugging Face's [Inference Endpoints](https://endpoints.huggingface.co), paid for by the hour while it is up:

```bash
{endpoint}
```"""


def display_name(name: str) -> str:
    """A model as a reader of the card needs it: of a path on this machine, the last part only."""
    return Path(name).name if Path(name).exists() else name


def merged_card(where: str, made: Mapping[str, Mapping[str, Any]], name: str, adapter: Adapter) -> str:
    """README.md of the merged model, which is at `where`. name: of the adapter, as its user wrote it."""
    says = f"`{display_name(adapter.base)}` with the LoRA adapter `{display_name(name)}` folded in, in 16 bits."
    base = None if Path(adapter.base).exists() else adapter.base
    parts = [says, compared_part(made), MERGED_USE.format(where=where)]
    if not Path(where).exists():
        endpoint = endpoint_command(where.removesuffix("-merged"))
        parts.append(MERGED_ELSEWHERE.format(where=where, name=Path(where).name.lower(), endpoint=endpoint))
    return render_card(Path(where).name, base, "finetune", "transformers", parts)


LAPTOP = """## On a laptop

[llama.cpp](https://github.com/ggml-org/llama.cpp), which downloads the file itself (for a private repository `HF_TOKEN` must be set):

```bash
llama-cli -hf {repo}:{tag}
```

[Ollama](https://ollama.com) (for a private repository, add Ollama's key to your Hub account: https://huggingface.co/docs/hub/ollama):

```bash
ollama run hf.co/{repo}:{tag}
```

Or from files, with the chat template and what ends an answer in `Modelfile`:

```bash
hf download {repo} {file} Modelfile --local-dir .
ollama create {name} -f Modelfile
```

[LM Studio](https://lmstudio.ai):

```bash
hf download {repo} {file} --local-dir .
lms import {file}
```"""
FROM_FILE = """## On a laptop

[llama.cpp](https://github.com/ggml-org/llama.cpp): `llama-cli -m {file}`. [LM Studio](https://lmstudio.ai): `lms import {file}`.
[Ollama](https://ollama.com), from here: `ollama create {name} -f Modelfile && ollama run {name}`."""
PHONE = """## On a phone

Any app that runs llama.cpp takes `{file}`: [PocketPal AI](https://github.com/a-ghorbani/pocketpal-ai) (Android, iOS) opens it from
the phone's storage."""
LEAP = """

In an app of your own, Liquid AI's [LEAP SDK](https://docs.liquid.ai/deployment/on-device/sdk/model-loading) (Android, iOS) loads
`{file}` with `loadSimpleModel`."""


def gguf_card(
    folder: Path, repo: str | None, record: Mapping[str, Any], name: str, adapter: Adapter, merged: str | None, kind: str
) -> str:
    """README.md of GGUF files. repo, merged: where they and the merged model are on the Hub; kind: its model_type."""
    made = record["made"]
    file = next(iter(made.values()))["file"]
    values = {"repo": repo, "file": file, "tag": file.rsplit("-", 1)[1].removesuffix(".gguf"), "name": Path(file).stem.lower()}
    says = f"GGUF files of `{display_name(adapter.base)}` with the LoRA adapter `{display_name(name)}`, made by llama.cpp."
    laptop, phone = LAPTOP if repo else FROM_FILE, PHONE + (LEAP if kind.startswith("lfm2") else "")
    parts = [says, laptop.format(**values), phone.format(**values), compared_part(made, record.get("whole"))]
    return render_card(Path(repo or folder).name, merged, "quantized", "gguf", parts)
