"""Lets sbibm's benchmark runner, driven by hydra, find our methods by their names.

hydra imports whatever is in this namespace. The runner then takes `algorithm=npe_gkl`
without an edit: its configuration is found through the search path, and the function
that it names is in `sbibm.algorithms`. Processes of a launcher, which do not search,
import this module as well.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

__all__ = ["SbiBoedSearchPath"]


class SbiBoedSearchPath(SearchPathPlugin):
    """Adds the configurations of our methods to those of sbibm's runner."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append our folder, after all that the application has.

        Args:
            search_path: The search path of hydra.
        """
        # Other applications of hydra are none of our business.
        if "sbibm" in sys.modules:
            search_path.append(
                provider="sbi_boed_plugin", path="pkg://sbi_boed_plugin.sbibm.conf"
            )


class _RegisterOnImport(MetaPathFinder):
    """Registers our methods just before a part of sbibm is imported that needs it.

    Importing our package takes seconds, which other applications should not spend.
    """

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if not fullname.startswith(("sbibm.algorithms", "sbibm.tasks.")):
            return None
        sys.meta_path.remove(self)
        import_module("sbi_boed_plugin")
        # By the finders that are there now, ours among them.
        return find_spec(fullname)


if not any(isinstance(finder, _RegisterOnImport) for finder in sys.meta_path):
    sys.meta_path.insert(0, _RegisterOnImport())
