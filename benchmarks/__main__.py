"""Measures everything side by side and writes BENCHMARKS.md: `python -m benchmarks`.

    python -m benchmarks [--only generation,training] [--quick] [--model DIR] [--corpus FOLDER] [--notochord PYTHON]

The page and the JSON file beside it are written anew after every topic, so nothing is lost when a run is stopped; a
topic that fails is reported in the page, and the others go on.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sys
import time
import traceback
from pathlib import Path

from benchmarks.suite.machine import REPOSITORY, facts, other_work
from benchmarks.suite.options import Options
from benchmarks.suite.page import Page, Section

TOPICS = {
    "generation": ("generation", "Generation"),
    "notochord": ("per_note", "A note, against notochord"),
    "steps": ("steps", "One token by the operators"),
    "latency": ("latency", "Latency of a single event"),
    "busy": ("busy", "A busy machine"),
    "training": ("training", "Training"),
    "quality": ("quality", "Quality of bf16 and int8"),
    "startup": ("startup", "Start-up"),
    "reading": ("reading", "Reading MIDI files"),
    "endless": ("endless", "A million tokens"),
}
"""Topic: its module and its heading, in the order of the page."""


BUSY = 0.2
"""Cores; where others use more, the page says so."""


def run_topic(topic: str, options: Options) -> Section:
    """Run one topic; what goes wrong becomes part of its section."""
    module, title = TOPICS[topic]
    section = Section(topic, title)
    began = time.monotonic()
    try:
        importlib.import_module(f"benchmarks.suite.{module}").run(options, section)
    except Exception as error:  # whatever it is, the other topics go on
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        # No folders of this machine in the page.
        said = re.sub(r"(/[^/\s'\"]+)+/", "…/", lines[0] if lines else "")
        section.failed = f"{type(error).__name__}: {said}"
    section.seconds = time.monotonic() - began
    return section


def topics_of(text: str) -> list[str]:
    """Topics separated by commas, in the page's order."""
    wanted = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in wanted if word not in TOPICS]
    if unknown or not wanted:
        raise argparse.ArgumentTypeError(f"must be some of {','.join(TOPICS)} (received {text!r})")
    return [topic for topic in TOPICS if topic in wanted]


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", type=topics_of, default=list(TOPICS), metavar="TOPICS", help=f"some of {','.join(TOPICS)}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, no meaning: shows that all of it runs"
    )
    parser.add_argument("--model", type=Path, metavar="DIR", help="a checkpoint (default: the bundled one)")
    parser.add_argument(
        "--corpus", type=Path, metavar="FOLDER", help="music not trained on: MIDI files or token shards"
    )
    parser.add_argument(
        "--notochord", type=Path, metavar="PYTHON", help="the Python of an environment that has notochord"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: BENCHMARKS.md; with --quick out/BENCHMARKS.md"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the topics, write the page; 1 if one of them failed."""
    words = sys.argv[1:] if arguments is None else arguments
    parsed = parse(words)
    options = Options(parsed.quick, parsed.model, parsed.corpus, parsed.notochord)
    out = parsed.out or REPOSITORY / ("out/BENCHMARKS.md" if parsed.quick else "BENCHMARKS.md")
    out.parent.mkdir(parents=True, exist_ok=True)
    others = other_work()
    page = Page(facts(shown_command(words), others), left_out=[t for t in TOPICS if t not in parsed.only])
    if parsed.quick:
        page.remarks.append("A quick run: sizes and times are too small to mean anything.")
    if others is not None and others > BUSY:
        page.remarks.append(
            f"Other processes were using {others:.1f} cores: the machine can do better than this page."
        )
        options.say(page.remarks[-1])
    page.remarks.append("This run was stopped before its end.")
    try:
        for topic in parsed.only:
            section = run_topic(topic, options)
            page.sections.append(section)
            page.write(out)
            options.say(f"{topic}: {'FAILED: ' + section.failed if section.failed else 'done'}")
    except KeyboardInterrupt:
        options.say(f"interrupted; {len(page.sections)} topics are in {out}")
        return 130
    page.remarks.pop()
    page.facts["time taken"] = f"{time.monotonic() - options.began:.0f} s"
    page.write(out)
    options.say(f"wrote {out}")
    return 1 if any(section.failed for section in page.sections) else 0


def shown_command(words: list[str]) -> str:
    """The command as it goes into the page: of folders and programs the last part of the name only."""
    shown = [word if word.startswith("-") or "/" not in word else f"…/{Path(word).name}" for word in words]
    return "python -m benchmarks " + " ".join(word if "…" in word else shlex.quote(word) for word in shown)


if __name__ == "__main__":
    sys.exit(main())
