"""What the commands share: how wrong input is refused."""

import argparse
from collections.abc import Callable

__all__ = ["InputError", "integer_from"]


class InputError(Exception):
    """Wrong input, with a message of one line."""


def integer_from(least: int) -> Callable[[str], int]:
    """Return a type of arguments that are integers of at least `least`."""

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
