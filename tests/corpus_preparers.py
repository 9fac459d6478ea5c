"""Preparers that misbehave on purpose; workers import this module by name."""

from __future__ import annotations

import os
import time

import numpy as np


def make(note="x"):
    """A preparer whose doings follow the name of the file."""

    def prepare(path):
        name = path.name
        if name.startswith("sleep"):
            time.sleep(60.0)
        while name.startswith("spin"):
            pass
        if name.startswith("hungry"):
            hoard = [np.ones(1 << 24) for _ in range(64)]  # 8 GB
            return {"verdict": "used", "reason": str(len(hoard))}, np.zeros(0, dtype=np.int32)
        if name.startswith("crash"):
            os._exit(7)
        if name.startswith("raise"):
            raise KeyError("surprise")
        os.write(1, b"a library that prints must not disturb the messages")
        return {"verdict": "used", "reason": note}, np.arange(len(name), dtype=np.int32)

    return prepare


def broken():
    """A preparer that cannot be made."""
    raise RuntimeError("no such luck")
