"""What indexing, tracing and evaluation can be told. Light on purpose: the command line imports this at start."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from headwater.configs import Problem, section, setting
from headwater.train.corpus.settings import SourceSettings
from headwater.train.settings import CODEC_NAMES, ParallelSettings, wide_head_problems

LOSSES = ("log_odds", "cross_entropy", "margin")
CURVATURE_KINDS = ("kronecker", "full", "none")


def default_damping(kind: str) -> float:
    """Share of the mean eigenvalue: two small factors are estimated better than one large matrix."""
    return 0.1 if kind == "full" else 0.01


def task_weight_setting() -> Any:
    """lambda: how much of the task's curvature is mixed into the corpus's."""
    text = "Weight of the task's curvature, a number or `paper` for the paper's rule and scale."
    return setting(0.75, text, minimum=0, below=1)


def task_weight_problems(value: float | str) -> Iterator[Problem]:
    if isinstance(value, str) and value != "paper":
        yield Problem("task_weight", value, "a number in [0, 1), or paper")


@dataclass(kw_only=True, slots=True)
class TracedModelSettings:
    """Whose gradients are taken: a checkpoint of a run, or a Hugging Face causal language model."""

    run: str = setting("", "A Headwater run directory.")
    step: int | None = setting(None, "Its checkpoint; the newest whole one if not given.")
    path: str = setting("", "Instead of a run: the directory of a Hugging Face causal language model.")
    optimizer_state: str = setting("", "For a Hugging Face model: a saved torch optimizer state with Adam's moments.")
    moments: str = setting(
        "saved",
        "Where a correction's second moments come from: a saved optimizer state, or the passages' own gradients.",
        choices=("saved", "fit"),
    )
    moments_sample: int = setting(512, "Passages that the moments are fitted on, drawn by curvature.seed.", minimum=1)
    precision: str = setting(
        "fp32",
        "Number format of forward and backward pass; auto: the one in which this machine is faster.",
        choices=("fp32", "bf16", "auto"),
    )
    base: str = setting("", "If `path` is a LoRA adapter: the directory of its base model; empty: the one it names.")
    rows_of: str = setting("adapter", "Of a LoRA adapter: whose layers have rows.", choices=("adapter", "base"))

    def problems(self) -> Iterator[Problem]:
        if bool(self.run) == bool(self.path):
            yield Problem("run", self.run, "either run or path", "give one of the two")
        if self.optimizer_state and self.run:
            yield Problem(
                "optimizer_state", self.optimizer_state, "empty for a run, whose checkpoints hold the moments"
            )
        if self.moments == "fit" and (self.run or self.optimizer_state):
            yield Problem("moments", "fit", "saved, for a run or where optimizer_state is given")


@dataclass(kw_only=True, slots=True)
class TracedCorpusSettings:
    """Whose passages get a row: those of the run, or of a file."""

    path: str = setting("", "A file or directory of documents; empty takes the run's own passages.")
    kind: str = setting("jsonl", "How to read it.", choices=("jsonl", "parquet", "huggingface", "text"))
    text_field: str = setting("text", "The field with the text.")
    id_field: str = setting("id", "The field with the id.")
    messages_field: str = setting(
        "", "The field with a conversation, a list of {role, content}, in place of a text: the assistant's turns count."
    )
    chat_template: str = setting("", "A Jinja chat template, or a directory with one; empty takes the model's own.")
    spans_field: str = setting(
        "", "The field with the spans whose loss counts, [[start, stop], ...] in characters; all counts without it."
    )
    columns: list[str] = setting([], "Further fields that are kept with each passage: what `where` can ask for.")
    max_tokens: int = setting(512, "Longest passage in tokens.", minimum=8)
    bos: str = setting("", "The token that begins a passage; empty takes the tokenizer's own.")
    documents: int = setting(0, "Take this many documents; 0 takes all.", minimum=0)

    def problems(self) -> Iterator[Problem]:
        if self.path:
            yield from self.source().problems()

    def source(self) -> SourceSettings:
        return SourceSettings(
            **{each.name: getattr(self, each.name) for each in fields(SourceSettings) if hasattr(self, each.name)}
        )


@dataclass(kw_only=True, slots=True)
class ProjectionSettings:
    """How a module's gradient is brought to kO x kI numbers."""

    dims: int = setting(64, "Projected dimensions per side.", minimum=1)
    head: int = setting(0, "Those of the output head, whose rows take a forward pass alone; 0: no rows.", minimum=0)
    modules: dict[str, int] = setting(
        {}, "Other dimensions for modules whose name matches a pattern; 0 leaves them out."
    )
    seed: int = setting(0, "Seed of the +-1 matrices.")

    def saved(self) -> dict[str, Any]:
        """What an index notes of it; without a head the same as before there was one."""
        noted = asdict(self)
        return noted if self.head else {name: value for name, value in noted.items() if name != "head"}


@dataclass(kw_only=True, slots=True)
class CurvatureSettings:
    """R_t, the autocorrelation of the corpus's projected gradients, which the rows are whitened with."""

    kind: str = setting(
        "kronecker", "Its form: two factors a module, the whole matrix, or none at all.", choices=CURVATURE_KINDS
    )
    sample: int | None = setting(
        None, "Passages it is made from, drawn by the seed; 0: all; by default 4,096, or 16,384 for full.", minimum=0
    )
    damping: float | None = setting(
        None, "Added to the eigenvalues, as a multiple of their mean; by default .01, or .1 for full.", above=0
    )
    seed: int = setting(0, "Seed of the draw.")

    renamed: ClassVar[dict[str, str]] = {"enabled": "kind"}

    @property
    def rows(self) -> int:
        """`sample`, or its default."""
        return self.sample if self.sample is not None else {"full": 16384}.get(self.kind, 4096)

    @property
    def damped(self) -> float:
        """`damping`, or its default."""
        return self.damping if self.damping is not None else default_damping(self.kind)


@dataclass(kw_only=True, slots=True)
class IndexSettings:
    """A gradient index of every passage of a corpus."""

    out: str = setting("", "The index directory; empty: RUN/index/NAME.")
    name: str = setting("headwater", "Its name under RUN/index.")
    model: TracedModelSettings = section(TracedModelSettings)
    corpus: TracedCorpusSettings = section(TracedCorpusSettings)
    loss: str = setting("log_odds", "Whose gradient is taken.", choices=LOSSES)
    correction: str = setting("none", "Optimizer correction.", choices=("none", "adam", "adafactor"))
    projection: ProjectionSettings = section(ProjectionSettings)
    curvature: CurvatureSettings = section(CurvatureSettings)
    codecs: list[str] = setting(["sign"], "How rows are stored.", choices=CODEC_NAMES)
    budget: int = setting(
        0, "Bytes a passage, in the first codec: the most dimensions that fit, in place of projection.dims.", minimum=0
    )
    batch_tokens: int = setting(2048, "Tokens of a batch.", minimum=1)
    parallel: ParallelSettings = section(ParallelSettings)
    shard_rows: int = setting(
        0,
        "Passages of a shard; 0: 64 MiB in float32, or more where the corpus is large.",
        minimum=0,
    )

    def problems(self) -> Iterator[Problem]:
        if self.model.path and not self.corpus.path:
            yield Problem("corpus.path", "", "the documents to index, since a Hugging Face model has no run")
        if self.model.path and not self.out:
            yield Problem("out", "", "the index directory, since a Hugging Face model has no run")
        yield from wide_head_problems(self.projection.head, "projection.head", self.curvature.kind, "curvature.kind")
        fitted = self.model.moments == "fit"
        if self.model.path and self.correction != "none" and not (self.model.optimizer_state or fitted):
            fix = "fit them: model.moments=fit"
            yield Problem("correction", self.correction, "none, unless model.optimizer_state is given", fix)
        if fitted and self.correction == "none":
            yield Problem("model.moments", "fit", "saved, where no correction is made")
        if fitted and self.projection.head:
            expected = "0, since second moments are fitted for the layers' weights and not for the output head's"
            yield Problem("projection.head", self.projection.head, expected)


TRACKSTAR: dict[str, Any] = {
    "loss": "cross_entropy",
    "correction": "adafactor",
    "projection": ProjectionSettings(dims=32),
    "curvature": CurvatureSettings(kind="full"),
    "codecs": ["int8"],
}
"""What the recipe of TrackStar (arXiv 2410.17413) sets of an index, in int8."""


@dataclass(kw_only=True, slots=True)
class PlaceSettings:
    """Where an index's model is, if it is neither where it was, seen from the index, nor where it was at all."""

    run: str = setting("", "The run directory.")
    path: str = setting("", "The directory of the Hugging Face model, or of the LoRA adapter.")
    optimizer_state: str = setting("", "The saved torch optimizer state.")
    base: str = setting("", "The directory of a LoRA adapter's base model.")


CURVATURES = ("task", "train", "none")
"""Of scores: the queries' mixed into the corpus's, the corpus's alone, none."""
DEVICES = ("auto", "cpu", "cuda")
"""Of a scan."""
ENOUGH_QUERIES = 10
"""A task: alone, a question suppresses its own direction."""
WAYS = {
    "headwater": ("task", True),
    "corpus": ("train", True),
    "gradient_cosine": ("none", True),
    "gradient_dot": ("none", False),
}
"""Curvature and unit norm of the ways in which an evaluation scores the rows of one index."""


def curvature_used(asked: str, queries: int) -> str:
    """The curvature of scores: that which is asked for, unless so many queries are no task."""
    return "train" if asked == "task" and queries < ENOUGH_QUERIES else asked


@dataclass(kw_only=True, slots=True)
class QueriesSettings:
    """The gradient rows of queries, made once for an index (or several) and asked with often."""

    index: str = setting("", "The index directory.")
    also: list[str] = setting([], "Further indexes that they are asked of.")
    model: PlaceSettings = section(PlaceSettings)
    queries: str = setting("", "A JSONL file of queries.")
    out: str = setting("", "Where the rows go: a .safetensors file.")
    parallel: ParallelSettings = section(ParallelSettings)

    def problems(self) -> Iterator[Problem]:
        for key, what in (("index", "an index directory"), ("queries", "a JSONL file of queries")):
            if not getattr(self, key):
                yield Problem(key, "", what)
        if not self.out.endswith(".safetensors"):
            yield Problem("out", self.out, "a file that ends with .safetensors")


@dataclass(kw_only=True, slots=True)
class TraceSettings:
    """Which passages taught the answers to a set of queries."""

    index: str = setting("", "The index directory.")
    also: list[str] = setting(
        [], "Further indexes of the same passages (other checkpoints, captured rows): scores are added."
    )
    weights: list[float] = setting([], "Weights of `index` and the further ones; empty: all 1.")
    model: PlaceSettings = section(PlaceSettings)
    queries: str = setting("", "A JSONL file of queries.")
    rows: str = setting(
        "", "Rows of queries (`headwater queries` makes them; or [Q, D] as .safetensors or .npy): no model is opened."
    )
    mean: bool = setting(False, "Ask with the mean of the queries' rows, as one query.")
    group: str = setting("", "The queries' field that names a group: ask with the mean of each group.")
    out: str = setting("", "Where the results go, as JSONL.")
    query_set: str = setting("headwater", "Name of the query set, noted in the results.")
    curvature: str = setting(
        "task",
        "Curvature of the scores; `task` needs a `task` or enough queries, else it is `train`.",
        choices=CURVATURES,
    )
    task: str = setting(
        "", "A JSONL file of queries that stand for the task, or a file of their rows; empty: those that are asked."
    )
    task_weight: float | str = task_weight_setting()
    rank: int | None = setting(None, "Directions per module of the queries' curvature; all if not given.")
    normalize: bool = setting(True, "Unit norm of query and passage (cosine).")
    top_k: int = setting(20, "Proponents kept.", minimum=1)
    bottom_k: int = setting(5, "Opponents kept.", minimum=0)
    codec: str | None = setting(None, "The form that is scanned; the finest if not given.")
    rescore: str | None = setting(None, "The form in which the best candidates are scored again.")
    candidates: int = setting(10_000, "Candidates per query for `rescore`; all where there are fewer.", minimum=1)
    device: str = setting(
        "auto", "What multiplies rows and queries: auto takes the GPU where many are asked.", choices=DEVICES
    )
    where: str = setting("", 'Search passages alone where this holds, such as `source == "wiki" and year >= 1990`.')
    scores: str = setting(
        "", "A file for every score of the form that is scanned: .npy [passages, queries] or .parquet."
    )
    duplicates: str = setting(
        "off",
        "Near-duplicates: `collapse` keeps the best of passages whose words are alike, and names the others.",
        choices=("off", "collapse"),
    )
    similar: float = setting(
        0.8, "Least share of runs of five words that near-duplicates have in common (Jaccard).", above=0, maximum=1
    )
    tokens: bool = setting(False, "Also score the tokens of what is found; passages then have their exact scores.")
    allow_incomplete: bool = setting(False, "Search what there is of an unfinished index.")
    parallel: ParallelSettings = section(ParallelSettings)

    renamed: ClassVar[dict[str, str]] = {"lambda_": "task_weight"}

    def problems(self) -> Iterator[Problem]:
        if self.task and self.curvature != "task":
            yield Problem("task", self.task, "given with curvature=task only")
        if not self.index:
            yield Problem("index", self.index, "an index directory")
        if self.weights and len(self.weights) != 1 + len(self.also):
            yield Problem("weights", self.weights, f"one per index ({1 + len(self.also)})")
        if self.scores and not self.scores.endswith((".npy", ".parquet")):
            yield Problem("scores", self.scores, "a file that ends with .npy or .parquet")
        yield from task_weight_problems(self.task_weight)


@dataclass(kw_only=True, slots=True)
class TailPatchSettings:
    """One training step on a proponent, and what it does to the target's probability."""

    enabled: bool = setting(True, "Measure it.")
    top: int = setting(10, "Proponents per query.", minimum=1)
    queries: int = setting(0, "Queries it is measured on, drawn by the seed; 0 takes all.", minimum=0)
    lr: float | None = setting(None, "Learning rate of the step; the run's last if not given.")


BASELINES = ("bm25", "tfidf", "ngram", "encoder", "trak", "random")


@dataclass(kw_only=True, slots=True)
class EvaluateSettings:
    """Methods held against the gold passages."""

    run: str = setting("runs/demo", "The run directory.")
    index: str = setting("", "Instead of a run: any index directory; asks for `queries`.")
    queries: str = setting("", "With `index`: a JSONL file of queries whose `gold` lists passages (or documents).")
    gold_columns: list[str] = setting(
        [], "With `index`: gold are the passages whose columns of these names hold what the question's fields do."
    )
    out: str = setting("", "With `index`: where rankings and table go; empty: INDEX-evaluation, beside the index.")
    baselines: list[str] = setting(
        ["bm25", "random"],
        "Methods that read texts alone, or nothing; trak: by the rows of an `index` without curvature.",
        choices=BASELINES,
    )
    encoder: str = setting("", "For the baseline `encoder`: the directory of a sentence encoder.")
    results: dict[str, str] = setting({}, "With `index`: results of other programs, by name: .jsonl or .npy files.")
    more_metrics: list[str] = setting(
        [], "Beside MRR and recall, hit and precision at 10: these at other places, as recall@50; strict@10: all found."
    )
    seed: int = setting(0, "Seed of the random ranking and the bootstrap.")
    task_weight: float | str = task_weight_setting()
    tail_patch: TailPatchSettings = section(TailPatchSettings)

    renamed: ClassVar[dict[str, str]] = {"lambda_": "task_weight"}

    def problems(self) -> Iterator[Problem]:
        yield from task_weight_problems(self.task_weight)
        if self.index and not self.queries:
            yield Problem("queries", self.queries, "a file of queries, with `index`")
        if not self.index:
            yield from (
                Problem(name, getattr(self, name), "given with `index` only")
                for name in ("queries", "gold_columns", "out", "results")
                if getattr(self, name)
            )
        if "trak" in self.baselines and not self.index:
            yield Problem("baselines", "trak", "trak with `index` only, an index made with curvature.kind=none")
        if ("encoder" in self.baselines) != bool(self.encoder):
            yield Problem("encoder", self.encoder, "given where `baselines` has encoder, and only there")
        if not all(re.fullmatch(r"(recall|strict|hit|precision)@[1-9]\d{0,8}", each) for each in self.more_metrics):
            expected = "recall, strict, hit or precision at a place, as recall@50"
            yield Problem("more_metrics", self.more_metrics, expected)
        taken = sorted({*WAYS, *BASELINES} & self.results.keys())
        if taken:
            yield Problem("results", ", ".join(taken), "names that no method of ours has")
