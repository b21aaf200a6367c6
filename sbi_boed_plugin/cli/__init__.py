"""The command `sbi-boed`."""

from sbi_boed_plugin.cli.command import main as main
