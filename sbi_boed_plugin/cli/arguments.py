"""What the commands share: types of arguments, and how wrong input is refused."""

import argparse
import math
from collections.abc import Callable

__all__ = ["InputError", "integer_from", "positive_number"]


class InputError(Exception):
    """Wrong input, with a message of one line."""


def integer_from(least: int) -> Callable[[str], int]:
    """Return a type of arguments that are integers.

    Args:
        least: The least of them.
    """

    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        # Seeds of numpy have 32 bits.
        if value is None or not least <= value < 2**32:
            raise argparse.ArgumentTypeError(
                f"must be an integer of at least {least} and below 2**32, got {text!r}"
            )
        return value

    return integer


def positive_number(text: str) -> float:
    """Return a positive number, which is a type of arguments."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value
