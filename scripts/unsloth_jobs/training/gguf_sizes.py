"""How large a GGUF file is, and what runs it well."""

from __future__ import annotations

# Bits of a weight, by the beginning of a quantisation's name.
BITS = {"bf16": 16, "f16": 16, "q8_0": 8.5, "q6_k": 6.6, "q5": 5.7, "q4": 4.9, "q3": 3.9, "q2": 3.4}


def bits(name: str) -> float:
    """Bits of a weight in a file of this quantisation, roughly: small models keep more of theirs finer."""
    return next(size for start, size in BITS.items() if name.startswith(start))


def gguf_bytes(in_16_bits: float, name: str) -> int:
    """The size of a file of this quantisation, from that of the model in 16 bits."""
    return round(in_16_bits * bits(name) / 16)


# A token reads all weights once, and memory is the limit: 50 GB a second in a laptop, 15 in a phone, half of it reached.
LAPTOP_BYTES_S, PHONE_BYTES_S = 50e9 / 2, 15e9 / 2


def speed_class(size: float) -> str:
    """What to expect of a file of so many bytes on common devices."""
    laptop, phone = (rate / size for rate in (LAPTOP_BYTES_S, PHONE_BYTES_S))
    text = f"about {speed_figure(laptop)} tokens a second on a laptop's processor"
    return text + (f", {speed_figure(phone)} on a phone" if size < 3e9 else "; too large for most phones")


def speed_figure(speed: float) -> str:
    """One figure that counts: it is a class, not a measurement."""
    if speed < 1:
        return "less than 1"
    digits = 10 ** (len(str(int(speed))) - 1)
    return f"{round(speed / digits) * digits:,}"
