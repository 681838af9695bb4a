"""Completions of the model that is being trained: sampled, in batches that fill the GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from .answer_ends import ends_of
from .generation import is_out_of_memory
from .memory import free_memory
from .report import emit
from .rewards import Completion

MOST_AT_ONCE = {"cuda": 512, "cpu": 64}  # sequences of a batch
SHARE_OF_FREE = 0.5  # of the memory that is free, which a batch's keys and values may take
PER_LOGIT = 24  # bytes: the logits of a batch's next tokens, in 32 bits, sorted and as probabilities


class Sampler:
    """Samples completions. at_once: sequences of a batch at most, lowered where memory does not hold them."""

    def __init__(self, tokenizer: Any, most_tokens: int, temperature: float, seed: int):
        self.tokenizer, self.most_tokens, self.temperature, self.seed = tokenizer, most_tokens, temperature, seed
        self.at_once = 0

    def write(self, model: Any, prompts: Sequence[list[int]], step: int) -> list[Completion]:
        """A completion of each prompt, a function of the weights, the prompts, the seed and the step."""
        import torch

        order = sorted(range(len(prompts)), key=lambda place: (len(prompts[place]), place))
        self.at_once = self.at_once or most_at_once(model, max(map(len, prompts)) + self.most_tokens)
        made: dict[int, Completion] = {}
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(number_of(f"{self.seed} {step}"))
            while order:
                places = order[: self.at_once]
                try:
                    written = self.write_batch(model, [prompts[place] for place in places])
                except Exception as error:
                    if len(places) == 1 or not is_out_of_memory(error):
                        raise
                    written = []
                if not written:  # out of memory, and what it held is free only once the exception is gone
                    self.write_fewer(len(places))
                    continue
                made |= dict(zip(places, written, strict=True))
                order = order[len(places) :]
        return [made[place] for place in range(len(prompts))]

    def write_fewer(self, tried: int) -> None:
        free_memory()
        self.at_once = tried // 2
        message = f"Out of GPU memory while {tried} completions were written. Going on with {self.at_once} at once."
        emit("warning", code="out_of_vram", message=message)

    def write_batch(self, model: Any, prompts: Sequence[list[int]]) -> list[Completion]:
        """Padded on the left. Every value that decides a sample is given: a model's own file would change them."""
        import torch

        width, filler = max(map(len, prompts)), self.tokenizer.pad_token_id
        ids = torch.tensor([[filler] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
        ends = ends_of(model, self.tokenizer)
        with torch.no_grad():
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self.most_tokens,
                do_sample=True,
                temperature=self.temperature,
                top_k=0,
                top_p=1.0,
                repetition_penalty=1.0,
                use_cache=True,
                pad_token_id=filler,
                eos_token_id=sorted(ends),
            )
        return [completion_of(row, ends, self.tokenizer) for row in output[:, width:].tolist()]


def completion_of(row: list[int], ends: set[int], tokenizer: Any) -> Completion:
    """What was written up to the token that ends it; that is learned, too."""
    end = next((place for place, token in enumerate(row) if token in ends), None)
    tokens = row if end is None else row[: end + 1]
    return Completion(tokenizer.decode(tokens, skip_special_tokens=True).strip(), tokens, end is None)


def number_of(text: str) -> int:
    """A seed from a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")


def most_at_once(model: Any, length: int) -> int:
    """Sequences whose keys, values and logits the free memory holds, each of so many tokens."""
    import torch

    if not torch.cuda.is_available():
        return MOST_AT_ONCE["cpu"]
    free, _ = torch.cuda.mem_get_info()
    free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return max(min(int(SHARE_OF_FREE * free / sequence_bytes(model.config.to_dict(), length)), MOST_AT_ONCE["cuda"]), 1)


def sequence_bytes(config: Mapping[str, Any], length: int) -> float:
    """What a sequence takes while it is written: keys and values of its tokens in 16 bits, and logits of the next one."""
    text = config.get("text_config") or config
    heads = text.get("num_attention_heads") or 1
    width = text.get("head_dim") or text.get("hidden_size", 0) / heads
    kinds = text.get("layer_types") or ["attention"] * text.get("num_hidden_layers", 0)
    layers = sum("attention" in kind for kind in kinds)
    cached = 2 * 2 * layers * (text.get("num_key_value_heads") or heads) * width * length
    return cached + PER_LOGIT * text.get("vocab_size", 0) + 1


@contextmanager
def writing(model: Any, accelerator: Any) -> Iterator[Any]:
    """The model as it writes: as TRL's GRPOTrainer has it, which Unsloth on a GPU makes fast, and back to training after."""
    from trl.trainer import grpo_trainer

    with grpo_trainer.unwrap_model_for_generation(model, accelerator) as ready:
        yield ready
