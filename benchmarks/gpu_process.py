"""Commands with a time limit, and the log of gpu_check.py that they write into."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple

from benchmarks import gpu_tools

_MARK = re.compile(r"^######## ([\w-]+)( goes on)?(?:: (.*))?$")  # a part begins; with a verdict: ends
UNFINISHED = "not finished"
MOST_BYTES = 1 << 20  # of a part's output that the log keeps; it is to stay a file that can be sent
_LIBC, _SET_DEATH_SIGNAL = ctypes.CDLL(None), 1  # of prctl
GRACE_S = {signal.SIGINT: 5.0, signal.SIGABRT: 2.0}  # to say where it stands, before it is killed


class Section(NamedTuple):
    """What a part printed, and what became of it."""

    verdict: str
    lines: list[str]


def bounded(command: list[str], seconds: float, log: Path, **where: object) -> int | None:
    """Run a command whose output goes to the end of a log: its exit status, or None where it was not done in time.

    Whatever it started ends with it. One that was not done is interrupted first, so that pytest tells what failed, then
    aborted, so that Python's fault handler says where it stands. Of much output the middle is left out.
    """
    begin = log.stat().st_size if log.exists() else 0
    with log.open("a") as to:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=to,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_listen,
            **where,  # type: ignore[call-overload]
        )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        for number, grace in GRACE_S.items():
            with contextlib.suppress(subprocess.TimeoutExpired, ProcessLookupError):
                os.killpg(process.pid, number)
                process.wait(grace)
                break
        return None
    finally:
        _end(process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that the driver holds ends when it can
            process.wait(5)
        _shorten(log, begin)


def _listen() -> None:
    """Let a process hear interrupts, which one that runs behind another may have been told to ignore.

    It ends when this one does, whatever ends it. One that crashes leaves no image of its memory: writing all of it
    takes longer than the part has.
    """
    _LIBC.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _shorten(log: Path, begin: int) -> None:
    """Take the middle out of what stands behind `begin`, where that is too much."""
    size = log.stat().st_size
    if size - begin <= MOST_BYTES:
        return
    with log.open("r+b") as file:
        file.seek(begin)
        head = file.read(MOST_BYTES // 2)
        file.seek(size - MOST_BYTES // 2)
        tail = file.read()
        file.seek(begin)
        file.truncate()
        file.write(head + b"\n[much more was printed]\n" + tail)


def _end(session: int) -> None:
    """Kill all processes of a session, also those in groups of their own, as the compilers of ninja are."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)
    for _ in range(3):  # a process may be born meanwhile
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it is gone already
                if os.getsid(int(folder.name)) == session:
                    os.kill(int(folder.name), signal.SIGKILL)


def begin(log: Path, part: str, goes_on: bool = False) -> None:
    """A part's output comes now; what the log says of it already stays, where it goes on, and else its rows do."""
    with log.open("a") as to:
        to.write(f"\n######## {part}{' goes on' if goes_on else ''}\n")


def end(log: Path, part: str, verdict: str) -> None:
    """A part's output has come."""
    with log.open("a") as to:
        to.write(f"\n######## {part}: {verdict}\n")


def sections(log: Path) -> dict[str, Section]:
    """What the log says of each part, in order."""
    found: dict[str, Section] = {}
    name = ""
    for line in log.read_text(errors="replace").splitlines() if log.exists() else []:
        mark = _MARK.match(line)
        if mark is None:
            if name:
                found[name].lines.append(line)
            continue
        part, goes_on, verdict = mark.groups()
        before = found[part].lines if part in found else []
        if verdict is None:
            name = part
            kept = before if goes_on else [x for x in before if x.startswith(gpu_tools.MARK)]
            found[part] = Section(UNFINISHED, kept)
        else:
            found[part] = Section(verdict, before)
            name = ""
    return found
