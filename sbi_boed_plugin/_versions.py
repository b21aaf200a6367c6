"""Of which code a result is: versions of packages, and a digest of our own code."""

import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

from sbi_boed_plugin import __version__

__all__ = ["code_digest", "installed_versions", "module_version"]

# Packages with versions that every key has anyway.
_KNOWN = {
    "numpy",
    "pyro",
    "sbi",
    "sbi_boed_plugin",
    "sbibm",
    "scipy",
    "torch",
    *sys.stdlib_module_names,
}

# Folders of our package that no training comes through.
_NEVER_TRAINS = ("benchmark", "cli", "plotting")


def installed_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the versions of packages, after our own.

    Args:
        packages: Names of packages, as they are installed.

    Returns:
        Versions by name, `None` for what is not installed or runs from its sources.
    """
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


@cache
def module_version(module: str | None) -> str | None:
    """Return the version of a module's package.

    Args:
        module: Name of a module.

    Returns:
        Empty for what `installed_versions` and `code_digest` tell of and for Python's
        own modules, `None` for what is not installed, such as a user's script.
    """
    package = str(module).partition(".")[0]
    if package in _KNOWN:
        return ""
    path = Path(_place(package) or "")
    if not {"site-packages", "dist-packages"} & set(path.parts):
        return None
    with contextlib.suppress(PackageNotFoundError):
        return version(package)
    # It is installed under another name than it is imported by.
    names = sorted(set(packages_distributions().get(package, ())))
    return ", ".join(f"{name} {version(name)}" for name in names) or None


def _place(package: str) -> str | None:
    """Return the file of a package, `None` if it has none or is not found."""
    if package in sys.modules:
        return getattr(sys.modules[package], "__file__", None)
    with contextlib.suppress(ImportError, ValueError):
        return getattr(importlib.util.find_spec(package), "origin", None)
