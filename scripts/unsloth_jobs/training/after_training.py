"""What people want of a model once it is trained, in the order in which they want it, and the commands for it."""

from __future__ import annotations

import re
import shlex

from .gguf_sizes import gguf_bytes, speed_class

FIRST_MADE = "q4_k_m"  # the first that export.py makes
LONGEST_NAME = 32  # characters of an Inference Endpoint's
ENDPOINT = (
    "--framework pytorch --task text-generation --vendor aws --region us-east-1 --accelerator gpu --instance-type nvidia-l4 "
    "--instance-size x1 --min-replica 0 --scale-to-zero-timeout 15"
)


def laptop_line(parameters: int | None) -> str:
    """The GGUF file to expect, as: q4_k_m, about 0.7 GB: about 30 tokens a second ... . parameters: of the base."""
    if not parameters or parameters < 0:
        return FIRST_MADE
    size = gguf_bytes(parameters * 2, FIRST_MADE)
    amount = f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
    return f"{FIRST_MADE}, about {amount}: {speed_class(size)}"


def endpoint_command(repository: str) -> str:
    """`hf endpoints deploy` of the merged model that export.py pushes beside an adapter: it loads without PEFT."""
    name = re.sub("[^a-z0-9]+", "-", repository.rpartition("/")[2].lower())[:LONGEST_NAME].strip("-")
    return f"hf endpoints deploy {name} --repo {shlex.quote(repository + '-merged')} {ENDPOINT}"


USE_CARD = """## Try it, and put it to use

With unsloth-jobs, which made it, in its folder. Each of ours shows its price and asks first:

```bash
uv run scripts/serve.py {repository} --chat  # in a terminal, beside the base model
uv run scripts/submit.py templates/export.py --flavor cpu-upgrade --timeout 2h -- --adapter {repository}  # GGUF, and merged
uv run scripts/serve.py {repository}  # an OpenAI-compatible API, for half an hour
{endpoint}  # one that stays, once it is merged
```

The GGUF file: {laptop}."""


def use_part(repository: str, parameters: int | None) -> str:
    """Of an adapter's card."""
    return USE_CARD.format(repository=repository, endpoint=endpoint_command(repository), laptop=laptop_line(parameters))
