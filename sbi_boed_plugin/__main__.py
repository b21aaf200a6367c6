"""`python -m sbi_boed_plugin` is the command `sbi-boed`."""

import sys

from sbi_boed_plugin.cli import main

if __name__ == "__main__":
    sys.exit(main())
