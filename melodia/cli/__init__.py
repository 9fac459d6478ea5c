"""The command line: parse, call one public function, report.

Usage errors exit with 2, failures with 1; messages go to standard error; bad input gives no traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0, 1 failure, 2 usage, 130 interrupted)."""
    try:
        from melodia.cli.app import run
    except ImportError as error:
        package = (error.name or "melodia").partition(".")[0]
        if package == "melodia":
            raise
        text = f"the command line needs {package}, which cannot be imported ({error}); install it"
        sys.stderr.write(f"melodia: {text}\n")
        return 1

    return run(arguments)
