"""A pytest plug-in of gpu_check.py: a test that breaks the GPU's context or its process takes no other test with it.

The names of tests that have begun, and of those that failed, are kept in a file (gpu_begun.py). Where the context is
broken pytest ends with the status `BROKEN`; gpu_check.py starts it again, and what has begun is left out. The first
case of every test function comes first, then the second of each, so that a run that is cut off has seen something of
all. Where all is skipped the status is `ALL_SKIPPED`: that is no parity. Launches that gave up waiting are named behind
their test, which may pass; they wait for a tenth of what they wait elsewhere, since an exchange that does not work
would take all the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks import gpu_tools
from benchmarks.gpu_begun import Begun

if TYPE_CHECKING:
    import pytest  # gpu_check.py imports this where there may be none

BROKEN, ALL_SKIPPED = 77, 78
NOTHING_LEFT = 5  # pytest's own: no test was to be run
GAVE_UP = "GAVE UP "  # how such a line begins
LAST = "test_gpu_rescues.py"  # looks back at all others


def lost(status: int) -> bool:
    """Whether pytest's process came to an end before its tests did."""
    return status == BROKEN or status < 0


def broken() -> bool:
    """Whether every further call of the GPU would fail in this process."""
    import torch

    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def usable_rescues() -> int:
    """Launches so far that were made again the slow way; 0 where no kernel can run."""
    from melodia.kernels import cuda

    return (gpu_tools.rescues() or 0) if cuda.reason() is None else 0


def mixed(items: Sequence[Any]) -> list[Any]:
    """The first case of each function, then the second of each, and so on; what looks back comes last."""
    seen: Counter[str] = Counter()
    places = []
    for item in items:
        function = item.nodeid.partition("[")[0]
        places.append((LAST in function, seen[function]))
        seen[function] += 1
    return [items[k] for k in sorted(range(len(items)), key=places.__getitem__)]


class Watch:
    """What happens to the tests of a session.

    Args:
        begun: those that have begun.
    """

    def __init__(self, begun: Begun) -> None:
        self.begun = begun
        self.failed: set[str] = set()
        self.passed: set[str] = set()
        self.rescues = 0
        self.is_broken = False

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Keep what is to be stopped."""
        from melodia.kernels import cuda

        self.session = session
        cuda.SPIN_LIMIT_NS = gpu_tools.LIMIT_NS

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what has begun in another process, and mix the rest."""
        before = set(self.begun.names())
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in before])
        items[:] = mixed([item for item in items if item.nodeid not in before])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Keep a test's name before anything of it can go wrong."""
        self.begun.begin(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what failed, and what ran."""
        if report.failed:
            self.failed.add(report.nodeid)
            self.begun.fail(report.nodeid)
        elif report.passed and report.when == "call" and LAST not in report.nodeid:
            self.passed.add(report.nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Stop behind a test that broke the context; tell of one whose launches gave up."""
        self.is_broken = nodeid in self.failed and broken()
        if self.is_broken:
            self.session.shouldstop = f"the GPU's context is broken behind {nodeid}"
            return
        found = usable_rescues()
        if found != self.rescues:
            reporter: Any = self.session.config.pluginmanager.get_plugin("terminalreporter")
            reporter.write_line(f"\n{GAVE_UP}waiting: {found - self.rescues} launches of {nodeid}")
            self.rescues = found

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Say so in the status, and where nothing ran."""
        if self.is_broken:
            session.exitstatus = BROKEN
        elif exitstatus == NOTHING_LEFT and self.begun.names():
            session.exitstatus = 0
        elif exitstatus == 0 and not self.passed and not session.config.option.collectonly:
            session.exitstatus = ALL_SKIPPED


def pytest_configure(config: pytest.Config) -> None:
    """Watch."""
    begun = Begun.here()
    assert begun is not None
    config.pluginmanager.register(Watch(begun))
