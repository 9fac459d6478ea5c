"""notochord (PyPI), which needs another torch, in a process of its own that answers between the others' turns."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

CHILD = Path(__file__).with_name("notochord_child.py")
REMEDY = "python -m venv out/notochord; out/notochord/bin/pip install notochord; --notochord out/notochord/bin/python"


class Notochord:
    """A running child.

    Args:
        python: of an environment with notochord.
        threads: of its torch.

    Attributes:
        facts: number of parameters, versions.

    Raises:
        RuntimeError: it does not run; the message has the last line it said.
    """

    def __init__(self, python: Path, threads: int) -> None:
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [str(python), str(CHILD), "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        self.facts = self._answer()
        self.query = self.feed = 0.0  # seconds in all turns
        self.events = 0

    def timed(self, events: int) -> float:
        """Seconds of so many events, measured in the child."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{events}\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.query, self.feed = self.query + answer["query"], self.feed + answer["feed"]
        self.events += events
        return float(answer["seconds"])

    def close(self) -> None:
        """End the child."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._said.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._said.seek(0)
        said = self._said.read().strip().splitlines()
        self.close()
        raise RuntimeError(f"notochord does not run: {said[-1] if said else 'it said nothing'}")
