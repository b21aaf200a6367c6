"""Versions of the code that a result comes from."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from sbi_boed_plugin import __version__

__all__ = ["installed_versions"]


def installed_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return versions by name, ours first; `None` for what is not installed."""
    found: dict[str, str | None] = {"sbi_boed_plugin": __version__}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
