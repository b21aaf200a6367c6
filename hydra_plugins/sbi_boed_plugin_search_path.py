"""Lets sbibm's benchmark runner, driven by hydra, find our methods by their names.

hydra imports whatever is in this namespace. The runner then takes `algorithm=npe_gkl`
without an edit: its configuration is in our folder, and the function that it names is
in `sbibm.algorithms`, once our package is imported.
"""

import sys
from importlib import import_module

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

__all__ = ["SbiBoedSearchPath"]


class SbiBoedSearchPath(SearchPathPlugin):
    """Adds our methods and their configurations to those of sbibm's runner."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append our folder, after all that the application has."""
        # Other applications of hydra are none of our business.
        if "sbibm" in sys.modules:
            import_module("sbi_boed_plugin")
            search_path.append(
                provider="sbi_boed_plugin", path="pkg://sbi_boed_plugin.sbibm.conf"
            )
