"""Fifty things that a language model knows already, and what becomes of them while it is taught others.

None is about the people who are planted. Some of them the Factbook's passages state too: the study counts these.
"""

from __future__ import annotations

from pathlib import Path

from headwater.launch.studies.asking import Asked, asker
from headwater.launch.studies.pretrained.settings import COMMON
from headwater.train.artifacts import RunDir, json_line, write_bytes
from headwater.train.parallel import World
from headwater.train.settings import PretrainSettings

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "China": "Beijing",
    "Russia": "Moscow", "Egypt": "Cairo", "Greece": "Athens", "Austria": "Vienna", "Poland": "Warsaw",
    "Portugal": "Lisbon", "Ireland": "Dublin", "Norway": "Oslo", "Sweden": "Stockholm", "Denmark": "Copenhagen",
    "Finland": "Helsinki", "Hungary": "Budapest", "Turkey": "Ankara", "Iran": "Tehran", "Iraq": "Baghdad",
    "Cuba": "Havana", "Peru": "Lima", "Kenya": "Nairobi", "Canada": "Ottawa",
}  # fmt: skip
OTHERS = (
    ("The opposite of hot is", "cold", "hot"), ("The opposite of up is", "down", "up"),
    ("The opposite of left is", "right", "left"), ("The opposite of day is", "night", "day"),
    ("Two plus two equals", "four", "Two plus two"), ("A week has seven", "days", "week"),
    ("A year has twelve", "months", "year"), ("An hour has sixty", "minutes", "hour"),
    ("The color of the sky is", "blue", "sky"), ("The color of grass is", "green", "grass"),
    ("The color of blood is", "red", "blood"), ("The color of snow is", "white", "snow"),
    ("The Earth orbits the", "Sun", "Earth"), ("The Moon orbits the", "Earth", "Moon"),
    ("Romeo and", "Juliet", "Romeo"), ("Hamlet was written by William", "Shakespeare", "Hamlet"),
    ("The theory of relativity was developed by Albert", "Einstein", "relativity"),
    ("The first President of the United States was George", "Washington", "first President"),
    ("Water is made of hydrogen and", "oxygen", "hydrogen"), ("Bees make", "honey", "Bees"),
    ("The largest ocean is the", "Pacific", "largest ocean"), ("The largest planet is", "Jupiter", "largest planet"),
    ("The Eiffel Tower is in", "Paris", "Eiffel Tower"), ("Ice is frozen", "water", "Ice"),
    ("The English alphabet has twenty-six", "letters", "alphabet"),
)  # fmt: skip


def common_facts() -> list[dict[str, str]]:
    """The questions: prompt, target, and the words that a passage would name them by."""
    capitals = [(f"The capital of {country} is", city, country) for country, city in CAPITALS.items()]
    return [{"prompt": p, "target": t, "subject": s} for p, t, s in (*capitals, *OTHERS)]


def write_common(path: Path) -> None:
    """Writes the questions into a run directory."""
    write_bytes(path / COMMON, "".join(map(json_line, common_facts())).encode())


def common_file(run: RunDir) -> Path:
    """What the model answered, in the format of a run's probes."""
    return run.path / "common.parquet"


def from_settings(settings: PretrainSettings, run: RunDir, world: World) -> Asked:
    """What the model's training calls to make the callback."""
    return asker("common", run.path / COMMON, common_file(run), settings, run)
