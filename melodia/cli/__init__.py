"""The command line: parse, call one public function, report.

Usage errors exit with 2, failures with 1; messages go to standard error; bad input gives no traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0, 1 failure, 2 usage, 130 interrupted)."""
    from melodia.cli.app import run

    return run(arguments)
