"""`headwater corpus inspect PATH`: what a corpus (or every corpus of a run) holds, and whether its files are whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headwater.configs.errors import MissingError, UserError
from headwater.train.stream.corpus import Corpus, open_corpus
from headwater.train.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from rich.console import Console


def inspect(
    path: str | Path, *, sequence: int = 0, count: int = 3, passage: str | None = None, console: Console | None = None
) -> None:
    """Prints a corpus as tables: its figures, some sequences with their passages, or one passage.

    Args:
        path: a corpus directory, or a run directory (each of its corpora is shown).
        sequence: the first sequence shown.
        count: how many sequences are shown.
        passage: the id or number of one passage to show in full instead.

    Raises:
        MissingError: there is no corpus at the path, or no such passage.
        CorruptError: a file is not what was written; the error names it.
    """
    from rich.console import Console

    console = console or Console()
    corpora = find_corpora(Path(path))
    for number, corpus in enumerate(corpora):
        tokenizer = find_tokenizer(corpus.path)
        if passage is not None:
            last = number == len(corpora) - 1
            if show_passage(console, corpus, tokenizer, passage, required=last):
                return
            continue
        show_summary(console, corpus)
        show_sequences(console, corpus, tokenizer, sequence, count)
        corpus.verify()
        console.print(f"[green]all {len(corpus.manifest['shards'])} shards are as they were written[/green]")


def find_corpora(path: Path) -> list[Corpus]:
    if (path / "manifest.json").exists():
        return [open_corpus(path)]
    found = [path / "corpus" / name for name in ("base", "injected")]
    corpora = [open_corpus(each) for each in found if (each / "manifest.json").exists()]
    if not corpora:
        raise MissingError(
            f"{path} holds no corpus",
            expected="a corpus directory (manifest.json), or a run directory (corpus/base/manifest.json)",
            fix="run `headwater corpus CONFIG` first",
        )
    return corpora


def find_tokenizer(corpus: Path) -> TextTokenizer | None:
    """The tokenizer of the run that a corpus directory lies in, if it lies in one."""
    for directory in (corpus, corpus.parent, corpus.parent.parent):
        if (directory / "tokenizer.json").exists():
            return TextTokenizer.from_file(directory / "tokenizer.json")
    return None


def show_summary(console: Console, corpus: Corpus) -> None:
    from rich.table import Table

    manifest, lengths = corpus.manifest, corpus.lengths
    fill = manifest["tokens"] / (corpus.sequences * manifest["seq_len"])
    table = Table(title=str(corpus.path), show_header=False, title_justify="left")
    quartiles = [int(value) for value in np.percentile(lengths, [0, 50, 100])]
    for name, value in (
        ("documents", f"{manifest['documents']:,}"),
        ("passages", f"{corpus.passages:,}"),
        ("tokens", f"{manifest['tokens']:,}"),
        ("tokens of a passage", f"{quartiles[0]} to {quartiles[2]}, median {quartiles[1]}, mean {lengths.mean():.1f}"),
        ("sequences", f"{corpus.sequences:,} of {manifest['seq_len']} tokens, {fill:.1%} full"),
        ("shards", f"{len(manifest['shards'])}, {sum(shard['bytes'] for shard in manifest['shards']):,} bytes"),
        ("kept at", manifest.get("remote") or "here"),
        ("vocabulary", f"{manifest['vocab_size']:,}"),
        ("fingerprint", corpus.fingerprint),
    ):
        table.add_row(name, value)
    for source in corpus.sources:
        table.add_row(f"source {source.name}", f"{source.sequences:,} sequences, weight {source.weight:g}")
    console.print(table)


def show_sequences(console: Console, corpus: Corpus, tokenizer: TextTokenizer | None, first: int, count: int) -> None:
    from rich.markup import escape
    from rich.table import Table

    if not 0 <= first < corpus.sequences:
        raise UserError(f"{corpus.path} has no sequence {first}", expected=f"0 to {corpus.sequences - 1}")
    for number in range(first, min(first + count, corpus.sequences)):
        packed = corpus.sequence(number)
        used = int(packed.lengths.sum())
        table = Table(title=f"sequence {number}: {used} tokens", title_justify="left")
        for column in ("passage", "id", "offset", "tokens", "text"):
            table.add_column(column, justify="right" if column in ("passage", "offset", "tokens") else "left")
        start = packed.first_passage
        for place, passage_id in enumerate(corpus.ids(start, start + len(packed.lengths))):
            text = (
                corpus.text(start + place, tokenizer) if tokenizer else str(corpus.tokens(start + place)[:12].tolist())
            )
            offset = int(corpus.offsets[start + place])
            shown = escape(text if len(text) <= 70 else text[:69] + "…")
            table.add_row(str(start + place), escape(passage_id), str(offset), str(packed.lengths[place]), shown)
        console.print(table)


def show_passage(
    console: Console, corpus: Corpus, tokenizer: TextTokenizer | None, passage: str, *, required: bool
) -> bool:
    from rich.markup import escape

    number = corpus.numbers.get(passage, int(passage) if passage.isdecimal() else -1)
    if not 0 <= number < corpus.passages:
        if required:
            raise MissingError(f"{corpus.path} has no passage {passage!r}", expected="an id (`document#k`) or a number")
        return False
    tokens = corpus.tokens(number)
    place = f"sequence {corpus.sequence_of[number]}, offset {corpus.offsets[number]}, {len(tokens)} tokens"
    console.print(f"[bold]{escape(corpus.ids(number, number + 1)[0])}[/bold] (passage {number}: {place})")
    console.print(escape(corpus.text(number, tokenizer)) if tokenizer else str(tokens.tolist()))
    return True
