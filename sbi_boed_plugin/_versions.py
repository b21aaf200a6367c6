"""Versions of the code that a result comes from."""

import hashlib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sbi_boed_plugin import __version__

__all__ = ["code_digest", "installed_versions"]

# Folders of our package that no training comes through.
_NEVER_TRAINS = ("benchmark", "cli", "plotting")


def installed_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return versions by name, ours first; `None` for what is not installed."""
    found: dict[str, str | None] = {"sbi_boed_plugin": __version__}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def code_digest(*others: str) -> str:
    """Return a digest of our code that trains: between releases it has no version.

    Args:
        others: Files of folders that nothing trains in, to be included all the same.
    """
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package)
        if place.parts[0] not in _NEVER_TRAINS or place.as_posix() in others:
            content = path.read_bytes()
            digest.update(f"{place.as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()
