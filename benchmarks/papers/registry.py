"""The studies there are, by name."""

from importlib import import_module
from importlib.util import find_spec

from benchmarks.papers.study import Study

__all__ = ["available_studies", "get_study"]

# Names of modules rather than studies: only the one that runs is imported.
_MODULES = {
    "two-moons": "two_moons",
    "linear-scaling": "linear_scaling",
    "sir-ablation": "sir_ablation",
    "table-sir": "table_sir",
    "table-bmp": "table_bmp",
    "location": "location",
    "pharmacokinetic": "pharmacokinetic",
    "gkl-variance": "gkl_variance",
    "gkl-acceptance": "gkl_acceptance",
    "gkl-dimension": "gkl_dimension",
}


def available_studies() -> list[str]:
    """Return the names of all studies.

    Example:
        >>> "two-moons" in available_studies()
        True
    """
    return [name for name in _MODULES if find_spec(_path(name)) is not None]


def get_study(name: str) -> Study:
    """Return a study.

    Args:
        name: One of `available_studies()`.

    Returns:
        The study.

    Raises:
        ValueError: If there is none of that name.
    """
    known = available_studies()
    if name not in known:
        raise ValueError(f"study '{name}' is unknown. Use one of {known}.")
    return import_module(_path(name)).STUDY


def _path(name: str) -> str:
    return f"benchmarks.papers.{_MODULES[name]}"
