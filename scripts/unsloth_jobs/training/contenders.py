"""Contenders: the models that answer, found by their small files, each in the form in which it is asked."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from .adapter import CONFIG, SETTINGS_FILE, TOKENIZER_FILES, WEIGHTS, download
from .models import require_decoder
from .report import Stop

MOST_CONTENDERS = 5
SMALL_FILES = ["config.json", "generation_config.json", CONFIG, WEIGHTS, SETTINGS_FILE, *TOKENIZER_FILES]


@dataclass(frozen=True)
class Contender:
    """A model in one form. model, revision: the whole model that is loaded; adapter: the folder of what is put on it.

    prompt: whether the system prompt stands before each question; examples: how many training rows do. named: the
    adapter's id and commit, which the report states.
    """

    name: str
    model: str
    revision: str | None = None
    tokenizer: Path = Path()
    adapter: Path | None = None
    named: str = ""
    prompt: bool = False
    examples: int = 0

    @property
    def place(self) -> tuple[str, str | None]:
        """What is loaded for it."""
        return self.model, self.revision

    def form(self, prompt: bool = False, examples: int = 0) -> Contender:
        """The same model, asked otherwise."""
        form = " + prompt" if prompt else f" + {examples} example" + "s" * (examples > 1)
        return replace(self, name=self.name + form, prompt=prompt, examples=examples)

    def as_json(self) -> dict[str, Any]:
        found = {"name": self.name, "model": self.model, "revision": self.revision, "adapter": self.named or None}
        return found | {"system_prompt": self.prompt, "examples": self.examples}


class Files(NamedTuple):
    """A model's small files on this machine. commit: None where they are a folder of this machine."""

    folder: Path
    commit: str | None

    @property
    def is_adapter(self) -> bool:
        return (self.folder / CONFIG).is_file()


def find_contenders(names: list[str], base_model: str, base_revision: str, prompt: bool, examples: int) -> list[Contender]:
    """The first is the one that all others are compared to: the base, or the first whole model where no base is known.

    names: of adapters and whole models, ID@REVISION where that matters. base_model, base_revision: "" for those that the
    first adapter names. Raises Stop where one of them cannot be read.
    """
    found = with_short_names([find_contender(name, base_model, base_revision) for name in names])
    on_base = next((one for one in found if one.adapter), None)
    if base_model:
        same = next((one for one in found if one.adapter and one.model == place_of(base_model)), None)
        revision = base_revision or (same.revision if same else "") or ""
        first = replace(whole_model(base_model, revision), name="base")
    elif on_base:
        first = replace(whole_model(on_base.model, on_base.revision or ""), name="base")
    else:
        first, *found = found
    others = [one for one in found if one.adapter or one.place != first.place]
    forms = [first.form(prompt=True)] if prompt else []
    forms += [first.form(examples=examples)] if examples else []
    contenders = [first, *forms, *others]
    if len(contenders) > MOST_CONTENDERS:
        raise Stop(
            "too_many_contenders",
            f"{len(contenders)} contenders, with the base model and its forms, are more than {MOST_CONTENDERS}.",
            "Name fewer with --models.",
        )
    return contenders


def with_short_names(found: list[Contender]) -> list[Contender]:
    """Of a folder on this machine a reader of the report needs its own name, where no other contender has that."""
    short = [Path(one.name).resolve().name if Path(os.path.expanduser(one.name)).is_dir() else one.name for one in found]
    taken = ["base", *short]
    return [replace(one, name=name) if taken.count(name) == 1 else one for one, name in zip(found, short, strict=True)]


def find_contender(name: str, base_model: str, base_revision: str) -> Contender:
    """An adapter, on the base that it names, or a whole model. Raises Stop."""
    model, revision = id_and_revision(name)
    files = small_files(model, revision)
    if not files.is_adapter:
        return whole_model(model, revision)
    config = json.loads((files.folder / CONFIG).read_text("utf-8"))
    if config.get("peft_type") != "LORA":
        raise Stop("not_lora", f"The adapter {model} is {config.get('peft_type')}, not LORA.", "Name another with --models.")
    if not (files.folder / WEIGHTS).is_file():
        raise Stop("no_adapter", f"{model} has no {WEIGHTS}.", "Pass what templates/sft.py made.")
    base = whole_model(*base_of(config, model, base_model, base_revision))
    own = files.folder if (files.folder / "tokenizer_config.json").is_file() else base.tokenizer
    named = f"{model}@{files.commit}" if files.commit else model
    return replace(base, name=model, tokenizer=own, adapter=files.folder, named=named)


def base_of(config: dict[str, Any], adapter: str, base_model: str, base_revision: str) -> tuple[str, str]:
    """The model under an adapter: the one that it names or, where that was a folder that is gone, --base-model."""
    base = config.get("base_model_name_or_path") or ""
    if Path(base).is_dir() or (base.count("/") == 1 and not base.startswith((".", "/", "~"))):
        asked = base_revision if place_of(base) == place_of(base_model) else ""
        return base, asked or config.get("revision") or ""
    if base_model:
        return base_model, base_revision
    raise Stop(
        "no_base_model",
        f"The base model {base!r} of the adapter {adapter} is not on this machine.",
        "Pass --base-model: its Hub id or folder.",
    )


def whole_model(name: str, revision: str) -> Contender:
    """A whole model by its own name. Raises Stop where it is none, or does not write text."""
    files = small_files(name, revision)
    if not (files.folder / "config.json").is_file():
        raise Stop(
            "no_model", f"The model {name} holds no config.json.", "Correct --models or --base-model: a Hub id or a folder."
        )
    require_decoder(json.loads((files.folder / "config.json").read_text("utf-8")))
    return Contender(name, place_of(name), files.commit, files.folder)


def small_files(name: str, revision: str) -> Files:
    """All of a model but a whole model's weights. Raises Stop where it cannot be read."""
    folder = Path(os.path.expanduser(name))
    if folder.is_dir():
        return Files(folder, None)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise Stop("no_model", f"The model {name} does not exist.", "Correct --models or --base-model: a Hub id or a folder.")
    found = download(name, revision or None, SMALL_FILES)
    return Files(found, found.name)  # the Hub's cache names a folder after its commit


def place_of(name: str) -> str:
    """What tells a model from others: a folder's whole path, or its Hub id."""
    folder = Path(os.path.expanduser(name))
    return str(folder.resolve()) if name and folder.is_dir() else name


def id_and_revision(name: str) -> tuple[str, str]:
    """ID@REVISION in two parts; a folder has no revision."""
    if Path(os.path.expanduser(name)).is_dir():
        return name, ""
    model, _, revision = name.partition("@")
    return model, revision
