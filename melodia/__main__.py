"""`python -m melodia`: the command line."""

from __future__ import annotations

import sys

from melodia.cli import main

if __name__ == "__main__":
    sys.exit(main())
