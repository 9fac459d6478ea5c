"""Worker processes that a bad file cannot take down: each file has a limit of time and of memory.

`map_files` hands paths to child processes, each a Python of its own that imports this module, so that neither
the caller's `__main__` nor its threads matter. A thread of the parent waits for each child; when a file takes
too long the child is killed, the file gets its verdict, and a fresh child takes the next one. A child bounds
its own memory (RLIMIT_AS) and time (SIGPROF, SIGALRM) where the system can, so that it ends even if the
parent has died. Messages are a length, a JSON header, and raw int32 tokens.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from melodia.errors import CorpusError

START_SECONDS = 120.0
"""How long a child may take to import what it needs."""

Prepare = Callable[[Path], tuple[dict[str, Any], NDArray[np.int32]]]

PREPARE = "melodia.corpus.prepare:preparer"

# Without the working folder, where python -m and -c look first: a random.py beside the music must not be run.
_CHILD = "import sys; sys.path[:] = filter(None, sys.path); from melodia.corpus.worker import main; sys.exit(main())"


@dataclass(frozen=True)
class FileLimits:
    """What one file may take.

    Attributes:
        seconds: processor time, so that a busy machine does not change verdicts.
        patience: wall-clock time may be this many times `seconds`.
        memory: bytes on top of what an idle worker has.
    """

    seconds: float = 10.0
    patience: float = 4.0
    memory: int = 500 << 20


@dataclass(frozen=True)
class Result:
    """What a worker says about one file.

    Attributes:
        index: which of the files.
        row: fields of the manifest row; "verdict" and "reason" at least where it is not usable.
        tokens: int32 [N], empty where it is not usable.
    """

    index: int
    row: dict[str, Any]
    tokens: NDArray[np.int32]


# -- messages
# -----------------------------------------------------------------------------------------------------


def send(stream: IO[bytes], header: dict[str, Any], body: bytes = b"") -> None:
    """Write one message."""
    text = json.dumps(header).encode("ascii")
    stream.write(struct.pack("<II", len(text), len(body)) + text + body)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """Read one message; None at the end of the stream, also in the middle of a message."""
    sizes = stream.read(8)
    if len(sizes) < 8:
        return None
    text_size, body_size = struct.unpack("<II", sizes)
    text = stream.read(text_size)
    body = stream.read(body_size)
    if len(text) < text_size or len(body) < body_size:
        return None
    return json.loads(text), body


# -- the parent's side
# --------------------------------------------------------------------------------------------


class _Child:
    """A worker process and its two pipes."""

    def __init__(self, setup: dict[str, Any]) -> None:
        environment = dict(os.environ)
        package_parent = str(Path(__file__).resolve().parents[2])
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([package_parent, known] if known else [package_parent])
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[name] = "1"
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._in, self._out, self._errors = self.process.stdin, self.process.stdout, self.process.stderr
        self._last_words = b""
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()
        self.expired = False
        answer = self.ask(setup, START_SECONDS)
        if answer is None or self.expired or answer[0].get("ready") is not True:
            code = self.end()
            words = self._last_words.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
            raise CorpusError(f"a worker process did not start (exit status {code}: {words}); try workers=0")

    def _collect(self) -> None:
        """Keep the last 4,000 bytes that the child writes to standard error."""
        with contextlib.suppress(OSError, ValueError):
            while chunk := os.read(self._errors.fileno(), 4096):
                self._last_words = (self._last_words + chunk)[-4000:]

    def ask(self, header: dict[str, Any], seconds: float) -> tuple[dict[str, Any], bytes] | None:
        """Send a message and wait for the answer.

        None if the child died or the time ran out (`expired` says which). Where the time runs out right behind the
        answer, there is an answer, and the child has `expired` all the same.
        """
        timer = threading.Timer(seconds, self._expire)
        timer.daemon = True
        timer.start()
        try:
            send(self._in, header)
            return receive(self._out)
        except (OSError, ValueError):
            return None
        finally:
            timer.cancel()
            timer.join()  # it may be at it already; from now on it has or it never will

    def _expire(self) -> None:
        self.expired = True
        self.process.kill()

    def end(self) -> int:
        """Kill the child if it lives, close the pipes, return its exit status."""
        self.process.kill()
        code = self.process.wait()
        self._reader.join(timeout=5.0)
        for pipe in (self._in, self._out, self._errors):
            with contextlib.suppress(OSError):
                pipe.close()
        return code


def map_files(
    paths: Sequence[Path],
    arguments: dict[str, Any],
    *,
    workers: int,
    limits: FileLimits | None = None,
    prepare: str = PREPARE,
) -> Iterator[Result]:
    """Prepare each file in one of the workers; results come as they are ready, in any order.

    Args:
        paths: the files.
        arguments: keyword arguments of the function that makes the preparer, JSON-ready.
        workers: how many processes; 0 works in this one, without limits.
        limits: of time and memory a file.
        prepare: "module:function" that makes the preparer in the child: a function from a path to (row,
            tokens).

    Raises:
        CorpusError: a worker cannot be started.
    """
    limits = limits or FileLimits()
    if workers < 1:
        yield from _map_here(paths, arguments, prepare)
        return
    pool = _Pool(list(paths), {"prepare": prepare, "arguments": arguments, "memory": limits.memory}, limits)
    try:
        yield from pool.run(min(workers, len(paths)))
    finally:
        pool.stop()


class _Pool:
    """One thread a child; the threads share the list of files."""

    def __init__(self, paths: list[Path], setup: dict[str, Any], limits: FileLimits) -> None:
        self.paths, self.setup, self.limits = paths, setup, limits
        self.results: queue.Queue[Result | BaseException] = queue.Queue(maxsize=64)
        self.next = 0
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.children: set[_Child] = set()
        self.threads: list[threading.Thread] = []

    def run(self, workers: int) -> Iterator[Result]:
        self.threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(workers)]
        for thread in self.threads:
            thread.start()
        for _ in range(len(self.paths)):
            result = self.results.get()
            if isinstance(result, BaseException):
                raise result
            yield result

    def stop(self) -> None:
        self.stopping.set()
        with self.lock:
            for child in self.children:
                child.process.kill()
        while any(thread.is_alive() for thread in self.threads):
            with contextlib.suppress(queue.Empty):
                self.results.get_nowait()
            for thread in self.threads:
                thread.join(timeout=0.02)

    def _take(self) -> int | None:
        with self.lock:
            if self.stopping.is_set() or self.next >= len(self.paths):
                return None
            self.next += 1
            return self.next - 1

    def _start(self) -> _Child:
        child = _Child({**self.setup, "seconds": self.limits.seconds, "patience": self.limits.patience})
        with self.lock:
            self.children.add(child)
        if self.stopping.is_set():
            child.process.kill()
        return child

    def _finish(self, child: _Child) -> int:
        with self.lock:
            self.children.discard(child)
        return child.end()

    def _serve(self) -> None:
        child: _Child | None = None
        try:
            while (index := self._take()) is not None:
                if child is None:
                    child = self._start()
                path = os.fsencode(self.paths[index]).hex()
                answer = child.ask({"path": path}, self.limits.seconds * self.limits.patience)
                if answer is None:
                    expired = child.expired
                    code = self._finish(child)
                    child = None
                    self.results.put(Result(index, _death(expired, code, self.limits), np.zeros(0, np.int32)))
                    continue
                row, body = answer
                if row.pop("spent", False) or child.expired:
                    self._finish(child)
                    child = None
                self.results.put(Result(index, row, np.frombuffer(body, dtype="<i4")))
        except BaseException as error:
            self.results.put(error)
        finally:
            if child is not None:
                self._finish(child)


def _map_here(paths: Sequence[Path], arguments: dict[str, Any], prepare: str) -> Iterator[Result]:
    work = _preparer(prepare, arguments)
    for index, path in enumerate(paths):
        row, tokens = _attempt(work, path)
        yield Result(index, row, tokens)


def _death(expired: bool, code: int, limits: FileLimits) -> dict[str, Any]:
    """The verdict of a file that its worker did not survive."""
    if expired or code in (-27, -14):  # SIGPROF, SIGALRM: the child's own clocks
        reason = f"time limit ({limits.seconds:g} s)"
    elif code == -9:
        reason = f"memory limit ({limits.memory >> 20} MB)"
    else:
        reason = f"the reader crashed (exit status {code})"
    return {"verdict": "failed", "reason": reason}


# -- the child's side
# ---------------------------------------------------------------------------------------------


def _preparer(prepare: str, arguments: dict[str, Any]) -> Prepare:
    module, _, name = prepare.partition(":")
    made: Prepare = getattr(importlib.import_module(module), name)(**arguments)
    return made


def _attempt(prepare: Prepare, path: Path) -> tuple[dict[str, Any], NDArray[np.int32]]:
    """Prepare a file; an error that nobody foresaw becomes its verdict, except for want of memory."""
    try:
        return prepare(path)
    except MemoryError:
        raise
    except Exception as error:
        row = {"verdict": "failed", "reason": f"unexpected {type(error).__name__}: {error}"}
        return row, np.zeros(0, dtype=np.int32)


def _bound_memory(extra: int) -> None:
    """Let this process grow by `extra` bytes and no more; does nothing where the system has no such limit."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        limit = pages * resource.getpagesize() + extra
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
    except (ImportError, OSError, ValueError):
        return


def _alarm(processor: float, wall: float) -> None:
    """End this process after so many seconds of either clock; 0 calls it off. Only where the system has it."""
    import signal

    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, processor)
        signal.setitimer(signal.ITIMER_REAL, wall)


def main() -> int:
    """Serve requests from standard input until it closes."""
    import signal
    import warnings

    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    incoming = os.fdopen(os.dup(0), "rb")
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not end up among the messages
    first = receive(incoming)
    if first is None:
        return 1
    setup = first[0]
    prepare = _preparer(setup["prepare"], setup["arguments"])
    _bound_memory(setup["memory"])
    send(outgoing, {"ready": True})
    while (request := receive(incoming)) is not None:
        path = Path(os.fsdecode(bytes.fromhex(request[0]["path"])))
        _alarm(setup["seconds"], setup["seconds"] * setup["patience"] + 5.0)
        try:
            row, tokens = _attempt(prepare, path)
        except MemoryError:
            row = {"verdict": "failed", "reason": f"memory limit ({setup['memory'] >> 20} MB)", "spent": True}
            tokens = np.zeros(0, dtype=np.int32)
        _alarm(0.0, 0.0)
        send(outgoing, row, np.asarray(tokens, dtype="<i4").tobytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
