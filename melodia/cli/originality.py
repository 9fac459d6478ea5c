"""`melodia originality`: what MIDI files share with the music that a model was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from melodia.cli.choice import ModelFolder
from melodia.cli.loading import loading
from melodia.cli.output import tell
from melodia.errors import MelodiaError, show_path


def originality(
    files: list[Path] = typer.Argument(None, metavar="[FILE...]", help="MIDI files to check."),
    model: ModelFolder = None,
    index: Path | None = typer.Option(
        None,
        "--index",
        metavar="FOLDER",
        help="First rebuild the index of --model DIR from the training music in FOLDER.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object per file instead of text."),
    cache: Path | None = typer.Option(
        None, "--cache", metavar="DIR", help="Folder that caches the token shards."
    ),
    force: bool = typer.Option(
        False, "--force", help="With --index: even if the model was not trained on FOLDER."
    ),
) -> None:
    """Find the longest passages that MIDI files share with a model's training music, in any key and at any speed."""
    if not files and index is None:
        raise typer.BadParameter("give MIDI files to check, or --index FOLDER to build the index")
    if index is not None and model is None:
        raise typer.BadParameter(
            "--index needs --model DIR: the model that was trained on the music in FOLDER"
        )
    for name, is_set in (("--cache", cache is not None), ("--force", force)):
        if is_set and index is None:
            raise typer.BadParameter(f"{name} needs --index FOLDER: checking files does not use it")

    from melodia.midi.reading import named
    from melodia.workflows.originality import check_files, index_checkpoint

    if index is not None:
        assert model is not None
        with loading():
            from melodia.cli.progress import ConsoleProgress

        with ConsoleProgress("originality") as progress:
            report = index_checkpoint(model, index, cache=cache, force=force, progress=progress)
        for line in report.lines():
            tell(line, err=as_json)
    bad = 0

    def failed(path: Path, error: MelodiaError) -> None:
        nonlocal bad
        bad += 1
        tell(f"melodia: {named(path, error)}", err=True)

    for path, found in check_files(model, files, failed=failed) if files else []:
        if as_json:
            tell(json.dumps({"path": str(path), **found.to_dict()}))
            continue
        for line in found.lines():
            tell(f"{show_path(path)}: {line}")
        for passage in found.passages[1:]:
            tell(f"  also {passage}")
    if bad:
        raise typer.Exit(code=1)
