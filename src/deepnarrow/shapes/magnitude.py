"""Large numbers, for people: written with four digits and a prefix, and read back. Prefixes are decimal, M is 10**6."""

import re

from deepnarrow.errors import UserError

PREFIXES = ("", "K", "M", "G", "T", "P", "E")
READABLE = {"": 0, "k": 1, "m": 2, "b": 3, "g": 3, "t": 4}  # 3B parameters is the field's word for 3G


def write(number: float, unit: str = "") -> str:
    """Four significant digits, all of them shown, so that columns line up; exact below a thousand.

    >>> write(128508672), write(514034688, "B"), write(996), write(999_960_000), write(0, "B")
    ('128.5 M', '514 MB', '996', '1.000 G', '0 B')
    """
    power = 0
    while number >= 999.95 and power < len(PREFIXES) - 1:
        number, power = number / 1000, power + 1
    digits = f"{number:#.4g}" if power else f"{number:g}"
    if unit and power and number >= 99.95:
        digits = f"{number:.0f}"  # bytes are asked for roughly
    return f"{digits} {PREFIXES[power]}{unit}".rstrip()


def read(text: str) -> int:
    """A whole number with an optional prefix.

    >>> read("100M"), read("1.5b"), read("60,506,624")
    (100000000, 1500000000, 60506624)
    """
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([kmbgt]?)", text.strip().lower().replace(",", ""))
    if not match:
        raise UserError(f"cannot read {text!r} as a size; write a number such as 100M, 2.9B or 60506624")
    return round(float(match[1]) * 1000 ** READABLE[match[2]])
