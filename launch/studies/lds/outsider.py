"""What anybody needs to be measured on the trainings of a study, and the scores that somebody else has made of it.

OUT/outsider/model/            the whole corpus's model: a Llama directory of Hugging Face, with its tokenizer
OUT/outsider/passages.jsonl    id, text, tokens (with the beginning token), in the order of all arrays: score tokens;
                              a passage from a document's middle begins with a space that its text has lost
OUT/outsider/queries.jsonl     example_id, kind, prompt, target, gold
OUT/outsider/halves.npy        bool [models, passages]: what each model was trained on
OUT/outsider/outputs.npy       float64 [models, queries]: the log-probability that it gave each target
OUT/outsider/outputs_again.npy the same of the first halves, trained again from other weights
OUT/outsider/scores/NAME.npy   scores that were handed in: [queries, passages]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from headwater.configs.errors import CorruptError, MismatchError, MissingError, UserError
from headwater.launch.studies.lds.measured import read_measured
from headwater.launch.studies.lds.scoring import save_array
from headwater.launch.studies.lds.settings import BASELINES, LdsSettings, model_run, queries_file
from headwater.train.artifacts import json_line, write_bytes


def write_outsider(out: Path, settings: LdsSettings) -> None:
    """Writes OUT/outsider; scores that were handed in stay."""
    from headwater.train.huggingface.export import export_llama

    place, measured = out / "outsider", read_measured(out, settings)
    if not (place / "model").exists():
        export_llama(model_run(out).path, place / "model")
    passages = measured.passages
    lines = (
        {"id": passages.id_of(n), "text": passages.text(n), "tokens": passages.tokens(n).tolist()}
        for n in range(len(passages))
    )
    write_bytes(place / "passages.jsonl", "".join(map(json_line, lines)).encode())
    write_bytes(place / "queries.jsonl", queries_file(out).read_bytes())
    save_array(place / "halves.npy", measured.inside_MN)
    save_array(place / "outputs.npy", measured.outputs_MQ)
    save_array(place / "outputs_again.npy", measured.again_AQ)


def keep_scores(out: Path, file: Path, name: str, taken: Sequence[str]) -> None:
    """Copies scores of a study's queries and passages into it.

    Args:
        name: of their line; the file's if empty.
        taken: names of the study's own methods.

    Raises:
        MissingError, CorruptError, MismatchError, UserError: they are not, or have a name that is taken.
    """
    name = name or file.stem
    if name in (*taken, *BASELINES) or "/" in name:
        raise UserError(f"the name {name} cannot be taken", expected="one that no method has", fix="give name=")
    if not file.is_file():
        raise MissingError(f"scores {file} are missing", fix="give a .npy file of queries x passages")
    try:
        scores_QN = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise CorruptError(f"{file} is not an array", got=error, expected="a .npy file of numbers") from None
    queries = len((out / "outsider" / "queries.jsonl").read_bytes().splitlines())
    passages = np.load(out / "outsider" / "halves.npy", mmap_mode="r").shape[1]
    if scores_QN.shape != (queries, passages):
        fix = "one row per line of outsider/queries.jsonl, one column per line of outsider/passages.jsonl"
        what = f"{file} does not hold scores of this study"
        raise MismatchError(what, got=scores_QN.shape, expected=(queries, passages), fix=fix)
    if scores_QN.dtype.kind not in "fiu" or not np.isfinite(scores_QN).all():
        raise UserError(f"{file} holds what is not a score", got=scores_QN.dtype, expected="finite numbers")
    save_array(out / "outsider" / "scores" / f"{name}.npy", scores_QN.astype(np.float64))


def kept_scores(out: Path) -> dict[str, np.ndarray]:
    """The scores that were handed in, by name: float64 [queries, passages] each."""
    return {path.stem: np.load(path) for path in sorted((out / "outsider" / "scores").glob("*.npy"))}
