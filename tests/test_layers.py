"""Arrows run one way: no part of melodia knows one that knows it (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from graphlib import TopologicalSorter

import pytest
from conftest import REPOSITORY

ROOT = REPOSITORY / "melodia"
FRONT = {"__init__", "__main__", "runtime"}  # the package's face, which everything stands behind


def imported(source: str) -> Iterator[str]:
    """The parts of melodia that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module == "melodia":
                yield from (alias.name for alias in node.names)
            elif node.module.startswith("melodia."):
                yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("melodia."))


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    """Of each part what it imports: packages and modules directly in `melodia`."""
    found: dict[str, set[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        found.setdefault(part, set()).update(imported(path.read_text("utf-8")))
    return {part: (to & found.keys()) - {part} for part, to in found.items() if part not in FRONT}


def test_arrows_run_one_way(arrows: dict[str, set[str]]) -> None:
    order = list(TopologicalSorter(arrows).static_order())  # raises CycleError, with the cycle
    assert order.index("errors") < order.index("sampler") < order.index("workflows") < order.index("cli")


@pytest.mark.parametrize(
    "package",
    ["melodia", *(f"melodia.{part}" for part in ("decode", "midi", "model", "originality", "render"))],
)
def test_names_that_are_loaded_when_they_are_used(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        value = getattr(module, name)
        assert vars(module)[name] is value, "it is kept"
    with pytest.raises(AttributeError, match=rf"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("part", ["kernels", "model", "training", "decode"])
def test_what_runs_on_tokens_alone_knows_no_midi(part: str, arrows: dict[str, set[str]]) -> None:
    assert not arrows[part] & {"midi", "sampler", "render", "workflows", "evaluation", "cli"}
