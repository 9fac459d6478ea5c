"""The MIDI files of the corpora, where a machine has them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path


def corpus_files(data_dir: Path, step: int) -> Iterator[tuple[str, bytes]]:
    """Every so many MIDI files of the corpora, packed or not: name and bytes."""
    count = 0
    for path in sorted(data_dir.glob("corpora/*")) + sorted(data_dir.glob("*/[tv][ra]*/*.mid")):
        if path.suffix == ".mid":
            count += 1
            if count % step == 0:
                yield path.name, path.read_bytes()
        elif path.name.endswith(".tar.gz"):
            with tarfile.open(path) as archive:
                for member in archive:
                    if member.name.endswith(".mid") and member.isfile():
                        count += 1
                        if count % step == 0 and (file := archive.extractfile(member)) is not None:
                            yield member.name, file.read()
    assert count, f"no corpora in {data_dir}"
