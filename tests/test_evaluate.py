"""`melodia evaluate` as a whole: the numbers, the JSON, the page, the command."""

from __future__ import annotations

import base64
import errno
import json
import math
import os
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sampler_helpers import make_seed, quarters, scale, tiny_sampler

from melodia.cli import main
from melodia.decode import SamplingConfig
from melodia.errors import ConfigError, CorpusError, MelodiaError
from melodia.evaluation.comparison import compare_sets
from melodia.evaluation.continuations import (
    Settings,
    continue_pieces,
    key_agreement,
    notes_and_bars,
    parts_of,
)
from melodia.evaluation.likelihood import encode_files, model_likelihood
from melodia.evaluation.notes import note_table
from melodia.evaluation.page import write_page
from melodia.evaluation.plots import histograms_plot, statistics_plot
from melodia.evaluation.report import Evaluation, Generated, likelihood_table, mean_histograms
from melodia.evaluation.statistics import piece_histograms
from melodia.measure import Likelihood, number
from melodia.midi import read_score
from melodia.model import save_checkpoint
from melodia.originality import Index, Training, attach_index, notes_of_tokens
from melodia.workflows.evaluate import evaluate_folder, write_json

VOID = {"meta", "img", "link", "br", "hr"}
SAMPLING = SamplingConfig(temperature=0.9, top_p=0.95)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, samples_dir: Path) -> Path:
    """Four pieces, one with a name that HTML must escape, and a file that is no MIDI."""
    target = tmp_path_factory.mktemp("music")
    names = ["a.mid", "b.mid", "deep/c.mid", "<b>&'d.mid"]
    found = sorted(samples_dir.glob("*.mid"), key=lambda path: path.stat().st_size)
    for name, path in zip(names, found, strict=False):
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(path.read_bytes())
    (target / "broken.mid").write_bytes(b"MThd")
    return target


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A model of random weights; its index holds the very music that it is evaluated on."""
    sampler = tiny_sampler()
    path = save_checkpoint(
        tmp_path_factory.mktemp("model") / "best",
        sampler.model,
        vocabulary=sampler.vocabulary,
        tokenizer_json=sampler.tokenizer.to_dict(),
        corpus_fingerprint="0123",
    )
    tokenizer = sampler.tokenizer
    pieces = [
        Training(
            name, *notes_of_tokens(tokenizer.encode(read_score(folder / name)[0]).ids, tokenizer.vocabulary)
        )
        for name in ("a.mid", "b.mid", "deep/c.mid")
    ]
    attach_index(path, Index.build(pieces))
    return path


@pytest.fixture(scope="module")
def evaluation(folder: Path, model: Path) -> Evaluation:
    return evaluate_folder(folder, model, generate=3, seed_bars=2, bars=4, sampling=SAMPLING, random_seed=3)


def test_likelihood_is_that_of_the_pieces(evaluation: Evaluation, folder: Path) -> None:
    sampler = tiny_sampler()
    pieces = encode_files(folder, sampler.tokenizer)
    expected = model_likelihood(
        sampler.model, sampler.vocabulary, pieces.tokens,
        constant_velocity=pieces.constant_velocity, seconds=pieces.seconds,
    )  # fmt: skip
    np.testing.assert_allclose(evaluation.likelihood.nats, expected.nats, rtol=1e-5)
    assert evaluation.likelihood.units() == ("token", "note", "bar", "second")
    assert list(evaluation.names) == ["<b>&'d.mid", "a.mid", "b.mid", "deep/c.mid"]
    assert [name for name, _ in evaluation.skipped] == ["broken.mid"]
    table = evaluation.tables()[0]
    total = expected.nats.sum()
    for row, count in zip(
        table.rows, (expected.tokens, expected.notes, expected.bars, expected.seconds), strict=True
    ):
        assert float(row[1].replace(",", "")) == pytest.approx(total / count.sum(), abs=6e-5)
        low, high = (float(part.replace(",", "")) for part in row[2].split(" to "))
        assert low <= total / count.sum() <= high


def test_pairs_are_the_same_bars(evaluation: Evaluation, folder: Path) -> None:
    made = evaluation.generated
    assert made is not None
    assert len(made.pairs) == 3
    assert len({pair.name for pair in made.pairs}) == 3
    sides = [pair.real for pair in made.pairs], [pair.generated for pair in made.pairs]
    assert made.comparison["mean_pitch"].low == compare_sets(*sides, paired=True)["mean_pitch"].low
    assert made.comparison["mean_pitch"].low != compare_sets(*sides)["mean_pitch"].low
    for pair in made.pairs:
        assert pair.continuation.report.bars == 4
        # The real bars: those behind the seed, as tokens write them.
        tokenizer = tiny_sampler().tokenizer
        whole = note_table(tokenizer.decode(tokenizer.encode(read_score(folder / pair.name)[0]).ids))
        assert note_table(pair.real).pitch.tolist() == whole.bars_between(2, 6).pitch.tolist()
        assert note_table(pair.seed).pitch.tolist() == whole.bars_between(0, 2).pitch.tolist()
        starts = notes_and_bars(pair.real)[1]
        assert starts[0] == 0
        assert len(starts) <= 5
    # The real bars stand in the index, which was built of them; only the piece that is not in it may share nothing.
    real, generated = made.originalities()
    for pair, found in zip(made.pairs, real, strict=True):
        if pair.name.startswith("<b>"):
            continue
        assert found.longest is None or found.longest.file in ("a.mid", "b.mid", "deep/c.mid")
    assert any(found.longest is not None and found.bars > 1 for found in real)
    assert len(generated) == 3
    assert made.settings["temperature"] == 0.9
    differences = [row.low for row in made.comparison.features if row.low == row.low]
    note = evaluation.tables()[1].note
    assert f"a star on 5% of the rows, on {0.05 * len(differences):.1f} of these {len(differences)}" in note
    rows = {row[0]: row for row in evaluation.tables()[2].rows}
    assert rows["pieces with a finding"][2] == str(sum(not report.healthy for report in made.collapse[1]))


def test_the_bars_are_those_of_the_grid(tmp_path: Path) -> None:
    """Played a little ahead of the bar lines, over which a note is held, and in 6/8 as in 4/4."""
    sampler = tiny_sampler()
    for metre in ((4, 4), (6, 8)):
        played = [(on - 0.02 * (on > 0), length, pitch, of) for on, length, pitch, of in scale(8, metre)]
        held = [(quarters(metre) * 2 - 1, 3.0, 40, 0)]
        path = tmp_path / f"{metre[0]}.mid"
        make_seed([*played, *held], metre=metre).dump_midi(path)
        parts = parts_of(sampler, path, 2, 4)
        assert parts is not None
        whole = note_table(sampler.tokenizer.decode(sampler.tokenizer.encode(read_score(path)[0]).ids))
        for part, first, last in ((parts[1], 0, 2), (parts[2], 2, 6)):
            found, bars = note_table(part), whole.bars_between(first, last)
            assert found.bars == last - first
            assert found.pitch.tolist() == bars.pitch.tolist()
            assert found.start.tolist() == (bars.start - bars.bar_lines[0]).tolist()


@pytest.mark.parametrize("scheme", ["REMI", "Structured"])
def test_real_and_generated_bars_are_of_one_metre_and_tempo(scheme: str, tmp_path: Path) -> None:
    """Also where tokens have none, and where they write a bar as two."""
    for metre in ((3, 4), (13, 8)):
        make_seed(scale(8, metre), metre=metre, tempo=77.0).dump_midi(tmp_path / f"{metre[0]}.mid")
    pairs, failed = continue_pieces(tiny_sampler(scheme), tmp_path, 2, Settings(seed_bars=3, bars=3))
    assert [len(pairs), failed] == [2, []]
    for pair in pairs:
        seed, real, made = (note_table(score) for score in (pair.seed, pair.real, pair.generated))
        assert seed.bars == real.bars == 3
        assert seed.bar_lines[1] == real.bar_lines[1] == made.bar_lines[1]
        assert seed.tempo_bpm == pytest.approx(made.tempo_bpm)
        assert real.tempo_bpm == pytest.approx(made.tempo_bpm)


def test_the_real_against_itself_overlaps_wholly() -> None:
    """Hand-made scores: keys and histograms of known music."""
    from test_evaluation_statistics import make

    up = make([(i, 1, 60 + step) for i, step in enumerate((0, 4, 7, 12, 7, 4, 0, -5))])
    other = make([(i, 1, 66 + step) for i, step in enumerate((0, 4, 7, 12, 7, 4, 0, -5))])
    agreement = key_agreement([up, up], [up, other])
    assert agreement.same_key == 0.5
    # Of F sharp major's triad, F sharp, A sharp and C sharp, none is in C major.
    assert agreement.in_scale == pytest.approx(0.5)
    assert key_agreement([make([])], [up]).pieces == 0
    mean = mean_histograms([up, other])["pitch_class_histogram"]
    expected = (
        piece_histograms(up)["pitch_class_histogram"] + piece_histograms(other)["pitch_class_histogram"]
    ) / 2
    np.testing.assert_allclose(mean, expected)
    assert mean_histograms([make([])]) == {}
    assert number(float("nan")) == "–"


def test_json_is_complete_and_has_no_nan(evaluation: Evaluation, tmp_path: Path) -> None:
    path = write_json(evaluation, tmp_path / "e.json")

    def refuse(name: str) -> None:
        raise AssertionError(name)

    data = json.loads(path.read_text("utf-8"), parse_constant=refuse)
    assert data["likelihood"]["nats_per_bar"]["low"] <= data["likelihood"]["nats_per_bar"]["high"]
    assert sum(piece["nats"] for piece in data["pieces"]) == pytest.approx(data["likelihood"]["nats"])
    assert {piece["name"] for piece in data["pieces"]} == set(evaluation.names)
    assert data["skipped"][0]["name"] == "broken.mid"
    assert data["model"]["kind"] == "sequential"
    made = data["generated"]
    assert [row["name"] for row in made["comparison"]["features"]] == [
        row["name"] for row in made["yardstick"]["features"]
    ]
    assert sum(made["histograms"]["real"]["pitch_class_histogram"]) == pytest.approx(1)
    assert len(made["pieces"]) == 3
    assert made["pieces"][0]["originality"]["generated"]["passages"] is not None
    with pytest.raises(MelodiaError, match="already exists"):
        write_json(evaluation, path)
    write_json(evaluation, path, force=True)


def test_the_same_again_gives_the_same(evaluation: Evaluation, folder: Path, model: Path) -> None:
    again = evaluate_folder(folder, model, generate=3, seed_bars=2, bars=4, sampling=SAMPLING, random_seed=3)
    assert again.to_dict() == evaluation.to_dict()


class Page(HTMLParser):
    """Collects what a page is made of, and refuses tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_stands_alone_and_can_be_read_without_seeing(evaluation: Evaluation, tmp_path: Path) -> None:
    path = write_page(evaluation, tmp_path / "e.html")
    text = path.read_text("utf-8")
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert page.all("html")[0]["lang"] == "en"
    assert page.all("meta")[0]["charset"] == "utf-8"
    # Nothing is fetched: pictures are inside, links stay on the page, no scripts, no style sheets.
    assert not page.all("script")
    assert not page.all("link")
    assert "url(" not in text
    assert "@import" not in text
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert len(anchors) == len([1 for _, attributes in page.tags if "id" in attributes])
    assert all(link["href"].removeprefix("#") in anchors for link in page.all("a"))
    images = page.all("img")
    kinds = Counter(image["src"].partition(";")[0] for image in images)
    assert kinds == {"data:image/svg+xml": 5, "data:image/png": 3}
    for image in images:
        assert len(image["alt"]) > 40
        data = base64.b64decode(image["src"].partition("base64,")[2])
        if image["src"].startswith("data:image/svg"):
            assert b"<svg" in data
            links = re.findall(rb'(?:href|src)="([^"]*)"', data)
            assert all(link.startswith(b"#") for link in links)
        else:
            assert data.startswith(b"\x89PNG")
    # Tables have captions, and every cell has headings.
    tables = page.all("table")
    assert len(tables) == len(page.all("caption")) == 5
    assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
    words = "".join(page.words)
    assert "broken.mid" in words
    assert "<b>" not in text.replace("&lt;b&gt;", ""), "names are escaped"
    for table in evaluation.tables():
        assert table.title in words
    headings = [tag for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1


def test_the_pictures_of_drums_say_which_side_is_which() -> None:
    real = [make_seed([(k / beats, 0.2, 38, -1) for k in range(32)]) for beats in (1, 2, 3)]
    pairs: Any = [SimpleNamespace(real=score, generated=real[k - 1]) for k, score in enumerate(real)]
    sides = [pair.real for pair in pairs], [pair.generated for pair in pairs]
    found, keys = compare_sets(*sides), (key_agreement([], []), key_agreement([], []))
    made = Generated(tuple(pairs), found, found, keys, ((), ()), {})
    for plot in (statistics_plot(made), histograms_plot(made)):
        assert b'id="legend_1"' in plot.image


def test_without_generation_the_page_has_the_likelihood(folder: Path, model: Path, tmp_path: Path) -> None:
    found = evaluate_folder(folder / "a.mid", model)
    assert found.generated is None
    assert found.names == ("a.mid",)
    page = Page(write_page(found, tmp_path / "one.html").read_text("utf-8"))
    assert len(page.all("img")) == 1
    assert found.to_dict()["generated"] is None


def test_a_model_without_an_index_is_compared_all_the_same(folder: Path, tmp_path: Path) -> None:
    sampler = tiny_sampler()
    path = save_checkpoint(
        tmp_path / "best",
        sampler.model,
        vocabulary=sampler.vocabulary,
        tokenizer_json=sampler.tokenizer.to_dict(),
        corpus_fingerprint="0123",
    )
    made = evaluate_folder(folder, path, generate=2, seed_bars=2, bars=2, random_seed=3)
    assert not any("training music" in table.title for table in made.tables())
    assert len(made.tables()) == 3
    (told,) = made.notes
    assert "no originality index" in told
    assert "--index FOLDER" in told
    assert evaluate_folder(folder / "a.mid", path).notes == ()


def test_training_music_and_the_split_of_the_folder_are_told(
    folder: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The index holds a, b and c; a transposed copy is told as well, other music is not."""
    split = tmp_path / "split"
    for part in ("train", "valid"):
        (split / part).mkdir(parents=True)
    (split / "train" / "a.mid").write_bytes((folder / "a.mid").read_bytes())
    (split / "valid" / "other.mid").write_bytes((folder / "<b>&'d.mid").read_bytes())
    found = evaluate_folder(split, model)
    assert found.names == ("valid/other.mid",)
    (told,) = found.notes
    assert "what is held out is scored, 1 of 2 files" in told
    assert evaluate_folder(split / "valid", model).notes == ()
    score = read_score(folder / "b.mid")[0]
    for track in score.tracks:
        track.shift_pitch(1, inplace=True)
    score.dump_midi(split / "valid" / "up.mid")
    page = tmp_path / "page.html"
    assert main(["evaluate", str(split / "valid"), "--model", str(model), "--html", str(page)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "note: the model was trained on 1 of the 2 pieces (up.mid, for example)" in said
    assert "was trained on 1 of the 2 pieces" in page.read_text("utf-8")
    assert "trained on 3 of the 4 pieces" in evaluate_folder(folder, model).to_dict()["notes"][0]


def test_names_that_are_no_text(folder: Path, model: Path, tmp_path: Path) -> None:
    """Latin-1, as old archives have them."""
    name = os.fsdecode(b"\xe9l\xe8ve.mid")
    (tmp_path / name).write_bytes((folder / "a.mid").read_bytes())
    twin = copytree(model, tmp_path / os.fsdecode(b"mod\xe8le"))
    found = evaluate_folder(tmp_path / name, twin)
    for write, file in ((write_json, "found.json"), (write_page, "found.html")):
        text = write(found, tmp_path / file).read_text(encoding="utf-8")
        assert "udce9l" in text
        assert "mod\\" in text


def test_refusals(folder: Path, model: Path) -> None:
    with pytest.raises(ConfigError, match="at least 2 pieces"):
        evaluate_folder(folder, model, generate=1)
    with pytest.raises(CorpusError, match="2 pieces of 402 bars or more"):
        evaluate_folder(folder, model, generate=2, seed_bars=400, bars=2)
    with pytest.raises(CorpusError, match="none of the 1 files"):
        evaluate_folder(folder / "broken.mid", model)
    with pytest.raises(ConfigError, match="`random_seed` must be a whole number between"):
        evaluate_folder(folder, model, generate=2, random_seed=-1)
    with pytest.raises(ConfigError, match="`bars` must be a whole number, at least 1"):
        Settings(bars=0)
    with pytest.raises(ConfigError, match="`pieces` must be a whole number, at least 1"):
        continue_pieces(tiny_sampler(), folder, 0, Settings())


def test_one_piece_has_no_interval_and_the_count_is_explained() -> None:
    one = np.array([10])
    table = likelihood_table(Likelihood(np.array([12.5]), one, one))
    assert [row[2] for row in table.rows] == ["–", "–"]
    assert table.note.startswith("1 piece; lower is better")
    assert "tokens counted are those scored: the end of each piece too, but no velocities" in table.note
    two = np.array([10, 10])
    (row, _) = likelihood_table(Likelihood(np.array([10.0, 10.0]), two, two)).rows
    assert row[2] == "1.0000 to 1.0000"


def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path, **_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "touch", read_only)
    monkeypatch.setattr("melodia.workflows.evaluate.Sampler", None)
    for option in ("--json", "--html"):
        path = tmp_path / f"x.{option[2:]}"
        assert main(["evaluate", str(folder), option, str(path)]) == 1
        assert f"{path}: cannot be written (Read-only file system)" in capsys.readouterr().err


def test_the_command(folder: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", str(folder), "--model", str(model)]
    assert main([*arguments, "--json", str(tmp_path / "x.json"), "--html", str(tmp_path / "x.html")]) == 0
    said = capsys.readouterr()
    assert "per second" in said.out
    assert "interval" in said.out
    assert f"wrote {tmp_path / 'x.html'}" in said.out
    assert "skipped broken.mid" in said.err
    value = json.loads((tmp_path / "x.json").read_text())["likelihood"]["nats_per_note"]["value"]
    assert number(value, 4) in said.out
    assert math.isfinite(value)
    assert main([*arguments, "--json", str(tmp_path / "x.json")]) == 1, "files are not overwritten"
    assert "already exists" in capsys.readouterr().err
    assert main([*arguments, "--html", str(tmp_path / "x.html")]) == 1
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--html", str(tmp_path / "x.txt"), "--force"]) == 1
    assert "must end in .html" in capsys.readouterr().err
    assert main([*arguments, "--generate", "1"]) == 2
    assert main([*arguments, "--temperature", "-1"]) == 2
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    for name, what in (("none", "no such file or folder"), ("empty", "no MIDI files")):
        assert main(["evaluate", str(tmp_path / name), "--model", str(model)]) == 1
        assert f"{tmp_path / name}: {what}" in capsys.readouterr().err
    few = ["--generate", "100", "--seed-bars", "2", "--bars", "2", "--branches", "1"]
    assert main([*arguments, *few]) == 0
    assert "of the 100 pieces that --generate asks for" in capsys.readouterr().err
