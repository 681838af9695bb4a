"""The machine: its GPU, driver and library versions."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .processes import process_count
from .report import Stop


def require_gpu_where_paid(planned_gb: float, planned_gpus: int = 0) -> None:
    """Stop on a GPU flavor whose GPU torch cannot see: Unsloth would train on the CPU at the GPU's price.

    Stop, too, where the GPU is smaller than the one that was planned with: it would fail after minutes, not now.
    """
    import torch

    accelerator = os.environ.get("ACCELERATOR", "")
    if accelerator and not accelerator.startswith("cpu") and not torch.cuda.is_available():
        raise Stop(
            "no_gpu",
            f"This job is billed for {accelerator} and torch {torch.__version__} sees no GPU (driver: {driver_version() or 'none'}).",
            "Submit it again; if it happens twice, choose another flavor.",
        )
    if torch.cuda.is_available():
        found = sum(torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count()))
        require_planned_memory(found / 1e9, planned_gb)
        if process_count() < planned_gpus:
            raise Stop(
                "missing_gpus",
                f"The run was planned for {planned_gpus} GPUs, and torch sees {process_count()} of them.",
                "Submit it again; if it happens twice, choose another flavor.",
            )


def require_planned_memory(found: float, planned: float) -> None:
    """Stop where a machine's GPUs have less memory than the plan assumed, in GB; a driver keeps some of it to itself."""
    if found < 0.9 * planned:
        raise Stop(
            "small_gpu",
            f"The GPU has {found:.1f} GB of memory, and the run was planned for {planned:.1f} GB.",
            "Submit it again; if it happens twice, choose another flavor.",
        )


def driver_version() -> str | None:
    """The NVIDIA driver's version, also where it is too old for torch to see the GPU; None without a driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0] if lines else None


def hardware() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {"device": "cpu", "cpus": os.cpu_count(), "driver": driver_version()}
    device = torch.cuda.get_device_properties(0)
    return {
        "device": device.name,
        "gpus": max(torch.cuda.device_count(), process_count()),  # each of several processes sees its own
        "vram_gb": round(device.total_memory / 1e9, 1),
        "cuda": torch.version.cuda,
        "driver": driver_version(),
    }


def peak_gb() -> float | None:
    """GB of GPU memory that the tensors of this run took at most; None without a GPU."""
    import torch

    return round(torch.cuda.max_memory_allocated() / 1e9, 3) if torch.cuda.is_available() else None


def training_libraries(backend: str) -> tuple[str, ...]:
    """The libraries that decide what training does."""
    return (*(("unsloth",) if backend == "unsloth" else ()), "torch", "transformers", "trl", "peft", "datasets")


def versions(libraries: Iterable[str]) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in libraries}


def memory_bytes() -> int | None:
    """Memory of this machine, or of the container that it is; None where the system does not say."""
    found = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max": there is none
            found.append(int(Path(limit).read_text("utf-8")))
    return min(found, default=None)
