"""WordNet 3 as documents, "lemmas: gloss", read at run time from what Debian's package `wordnet-base` installs.

A line of a data file is a synset (wndb(5)): `offset file type count(hex) word id ... | gloss`. The licence stands at
the head of each file, on lines that begin with two blanks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headwater.configs.errors import CorruptError, MissingError

DIRECTORY = "/usr/share/wordnet"
DATA_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
COLUMNS = ("headword", "lemmas", "part", "file")
"""What a document can bring along: its first lemma, all of them with commas between, its part of speech, and the
lexicographer file that it comes from."""

LEXICOGRAPHER_FILES = (
    *("adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute"),
    *("noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group"),
    *("noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant"),
    *("noun.possession", "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state"),
    *("noun.substance", "noun.time", "verb.body", "verb.change", "verb.cognition", "verb.communication"),
    *("verb.competition", "verb.consumption", "verb.contact", "verb.creation", "verb.emotion", "verb.motion"),
    *("verb.perception", "verb.possession", "verb.social", "verb.stative", "verb.weather", "adj.ppl"),
)
"""By their numbers (lexnames(5))."""

_PARTS = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
"""By a synset's type; `s` is an adjective satellite, a neighbour in meaning of another adjective."""


@dataclass(frozen=True, slots=True)
class Synset:
    """Words of one meaning.

    Attributes:
        id: its place in the data file and its type, `08923348-n`.
        lemmas: its words, blanks for underscores.
        gloss: what they mean, with examples.
        part: noun, verb, adjective or adverb.
        file: the lexicographer file, `noun.location`.
    """

    id: str
    lemmas: tuple[str, ...]
    gloss: str
    part: str
    file: str

    @property
    def text(self) -> str:
        words = ", ".join(self.lemmas)
        return f"{words}: {self.gloss}" if self.gloss else words

    @property
    def columns(self) -> dict[str, str]:
        """A value for each of `COLUMNS`."""
        return {
            "headword": self.lemmas[0],
            "lemmas": ", ".join(self.lemmas),
            "part": self.part,
            "file": self.file,
        }


def wordnet_files(directory: Path) -> list[Path]:
    """The data files, in the order in which they are read.

    Raises:
        MissingError: they are not all there.
    """
    files = [directory / name for name in DATA_FILES]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise MissingError(
            f"WordNet is not at {directory}",
            got=f"no {', '.join(missing)}",
            expected=f"the files {', '.join(DATA_FILES)}",
            fix="apt-get install wordnet-base, or set the source's path to a directory with them",
        )
    return files


def read_synsets(path: Path) -> Iterator[Synset]:
    """The synsets of a data file, in its order.

    Raises:
        CorruptError: naming the line that is none.
    """
    number = 0
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip() and not line.startswith("  "):
                    yield synset_of(line, path, number)
    except UnicodeDecodeError as error:
        what = f"{path} is not UTF-8 text (within a few thousand characters after line {number})"
        raise CorruptError(what, got=error, fix="install wordnet-base again") from None


def synset_of(line: str, path: Path, number: int) -> Synset:
    """A line of a data file."""
    head, bar, gloss = line.partition("|")
    try:
        offset, file, kind, count, *rest = head.split()
        words = rest[0 : 2 * int(count, 16) : 2]
        if not (bar and re.fullmatch(r"\d{8}", offset) and words and len(words) == int(count, 16)):
            raise ValueError("a field is missing")
        lemmas = tuple(lemma_of(word) for word in words)
        return Synset(f"{offset}-{kind}", lemmas, gloss.strip(), _PARTS[kind], LEXICOGRAPHER_FILES[int(file)])
    except (ValueError, LookupError) as error:
        raise CorruptError(
            f"{path}:{number} is not a synset of WordNet",
            got=f"{line.strip()[:60]!r} ({error})",
            expected="offset, lexicographer file, type, number of words, words | gloss",
            fix="install wordnet-base again",
        ) from None


def lemma_of(word: str) -> str:
    """A word as it is written: without the mark of where an adjective may stand, `(a)`, `(p)` or `(ip)`."""
    return re.sub(r"\((?:a|p|ip)\)$", "", word).replace("_", " ")
