"""The evaluation as one HTML page that needs nothing beside itself."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from melodia.evaluation.collapse import CollapseReport
from melodia.evaluation.continuations import Pair
from melodia.evaluation.plots import (
    Plot,
    drift_plot,
    histograms_plot,
    likelihood_plot,
    originality_plot,
    statistics_plot,
)
from melodia.evaluation.report import (
    Evaluation,
    Generated,
    Table,
    collapse_table,
    comparison_table,
    likelihood_table,
    originality_table,
)
from melodia.files import asked_file, check_target
from melodia.render.pianoroll import plot_pianoroll

ROLLS = 6
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1e26; background: #fff; max-width: 72rem; margin: 0 auto;
  padding: 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; padding: 0; }
a { color: #1d4f8a; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .22rem .8rem .22rem 0; border-bottom: 1px solid #d9dbe3; text-align: right; white-space: nowrap; }
th[scope=row], th:first-child { text-align: left; font-weight: 500; }
thead th { border-bottom: 2px solid #6b6e7a; }
p.note, figcaption { color: #4a4d59; font-size: .9rem; max-width: 60rem; }
figure { margin: 1rem 0 1.6rem; } img { max-width: 100%; height: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .95rem; }
dt { color: #4a4d59; } dd { margin: 0; overflow-wrap: anywhere; }
"""


def write_page(evaluation: Evaluation, path: Path | str, *, force: bool = False) -> Path:
    """Write the page.

    Args:
        evaluation: what `evaluate_folder` found.
        path: where; the name ends in ``.html``.
        force: replace a file that is there.

    Raises:
        MelodiaError: the file cannot be written, or is there already.
    """
    target = check_target(path, ".html", force)
    page = "\n".join(_page(evaluation))
    with asked_file(target, force=force) as part:
        part.write_text(page, encoding="utf-8")
    return target


def _page(evaluation: Evaluation) -> Iterator[str]:
    sections = list(_sections(evaluation))
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>melodia evaluate: {escape(evaluation.folder)}</title>\n<style>{STYLE}</style>\n</head>\n<body>"
    yield f"<header><h1>Evaluation of a {escape(str(evaluation.model['kind']))} model</h1>"
    yield _facts(evaluation)
    yield from (f'<p class="note">Note: {escape(note)}.</p>' for note in evaluation.notes)
    links = "".join(f'<li><a href="#{anchor}">{escape(title)}</a></li>' for anchor, title, _ in sections)
    yield f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n<main>'
    for anchor, title, parts in sections:
        yield f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(title)}</h2>'
        yield from parts
        yield "</section>"
    yield "</main>\n</body>\n</html>\n"


def _sections(evaluation: Evaluation) -> Iterator[tuple[str, str, list[str]]]:
    likelihood = evaluation.likelihood
    parts = [_table(likelihood_table(likelihood)), _figure(likelihood_plot(likelihood, evaluation.names))]
    yield "likelihood", "Likelihood", parts
    made = evaluation.generated
    if made is not None:
        parts = [
            _table(comparison_table(made)),
            _figure(statistics_plot(made)),
            _figure(histograms_plot(made)),
        ]
        yield "generated", "Generated against real", parts
        yield "collapse", "Collapse", [_table(collapse_table(made)), _figure(drift_plot(made))]
        plot = originality_plot(made)
        if plot is not None:
            yield "originality", "Originality", [_table(originality_table(made)), _figure(plot)]
        yield "music", "The music", list(_rolls(made))
    if evaluation.skipped:
        rows = tuple(evaluation.skipped)
        table = Table("Files that could not be used", ("file", "reason"), rows)
        yield "skipped", "Skipped files", [_table(table)]


def _facts(evaluation: Evaluation) -> str:
    facts = {**evaluation.model, "music": evaluation.folder, **evaluation.versions}
    if evaluation.generated is not None:
        settings = {name: value for name, value in evaluation.generated.settings.items() if value is not None}
        facts["generated with"] = ", ".join(
            f"{name.replace('_', ' ')} {value}" for name, value in settings.items()
        )
    texts = {name: f"{value:,}" if isinstance(value, int) else str(value) for name, value in facts.items()}
    items = (
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(text)}</dd>" for name, text in texts.items()
    )
    return f"<dl>{''.join(items)}</dl>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for first, *cells in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    # A table wider than the screen scrolls by itself, with the keyboard too.
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}"><table>'
        f"<caption>{escape(table.title)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}"
    )


def _figure(plot: Plot) -> str:
    data = base64.b64encode(plot.image).decode("ascii")
    return (
        f'<figure><img src="data:{plot.mime};base64,{data}" alt="{escape(plot.alt)}">'
        f"<figcaption>{escape(plot.title)}. {escape(plot.alt)}</figcaption></figure>"
    )


def _rolls(made: Generated) -> Iterator[str]:
    """The piano rolls of some pieces: seed and continuation, with what was found of each."""
    with tempfile.TemporaryDirectory() as folder:
        for number, (pair, report) in enumerate(zip(made.pairs[:ROLLS], made.collapse[1], strict=False)):
            path = Path(folder) / f"{number}.png"
            plot_pianoroll(
                pair.continuation.joined, path, split_at=pair.continuation.joined_at, title=pair.name
            )
            yield f"<h3>{escape(pair.name)}</h3>"
            plot = Plot("Seed and continuation", path.read_bytes(), "image/png", _roll_in_words(pair, made))
            yield _figure(plot)
            yield f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in _remarks(pair, report))}</ul>"


def _roll_in_words(pair: Pair, made: Generated) -> str:
    pitches = [event.pitch for event in pair.continuation.events if event.program >= 0]
    span = f" between MIDI pitches {min(pitches)} and {max(pitches)}" if pitches else ""
    return (
        f"Piano roll of {pair.name}: {made.settings['seed_bars']} seed bars, then {made.settings['bars']} generated "
        f"bars with {pair.continuation.report.notes} notes{span}."
    )


def _remarks(pair: Pair, report: CollapseReport) -> Sequence[str]:
    lines: list[Any] = list(report.lines())
    if pair.originality is not None:
        lines += pair.originality.lines()
    return lines
