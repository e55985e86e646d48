"""Questions asked of the model itself: one worker, a queue that everybody can see, answers that are kept for a while.

The model and the index are opened once. A question waits its turn; the page that asked looks after it, and when nobody
has looked for some seconds, because the page was left, it is dropped, also in the middle of a scan.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from headwater.attribution.explorer.holdings import Holdings, Home, IndexEntry
from headwater.attribution.explorer.limits import (
    ANSWERS_KEPT,
    CONTINUED_TOKENS,
    PROMPT_CHARACTERS,
    TARGET_CHARACTERS,
    WAITING,
)
from headwater.attribution.explorer.sets import Answer, Found
from headwater.configs.errors import MissingError, UserError

LEASE_S = 8.0
"""A question that nobody has looked at for so long is dropped."""
OPEN_INDEXES = 3
PROPONENTS, OPPONENTS = 20, 5
DONE, FAILED, DROPPED = "done", "failed", "dropped"
ENDED = (DONE, FAILED, DROPPED)


class BusyError(UserError):
    """The queue is full."""


class _LeftError(Exception):
    """Nobody waits for this question any more."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked: `trace`, `continue`, or `tokens` (of one passage)."""

    kind: str
    index: str
    prompt: str
    target: str = ""
    against: str = ""
    passage: str = ""


@dataclass
class Job:
    """A question on its way.

    Attributes:
        state: waiting, opening, reading, scanning; at last done, failed or dropped.
        done, total: passages compared.
        result: of a trace an `Answer`; of a continuation its tokens; of token scores a `Found`.
        about: what there is to say of it: seconds, passages, log-probabilities.
    """

    asked: Asked
    id: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    state: str = "waiting"
    done: int = 0
    total: int = 0
    result: Any = None
    about: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    looked_at: float = field(default_factory=time.monotonic)


class Desk:
    """Takes questions and answers them one after another.

    Args:
        holdings: whose indexes may be asked.
    """

    def __init__(self, holdings: Holdings) -> None:
        self.holdings = holdings
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._closed = self._owns_world = False
        self._open: OrderedDict[str, Any] = OrderedDict()
        self._thread = threading.Thread(target=self._work, name="explorer questions", daemon=True)
        self._thread.start()

    @property
    def indexes(self) -> list[IndexEntry]:
        """The indexes that can be asked."""
        return [entry for entry in self.holdings.indexes.values() if not entry.trouble]

    def index_named(self, name: str) -> IndexEntry:
        """An index by its name; the first if it is empty.

        Raises:
            MissingError: there is none, or it cannot be asked.
        """
        if not name and self.indexes:
            return self.indexes[0]
        entry = self.holdings.indexes.get(name)
        if entry is None or entry.trouble:
            raise MissingError(
                f"there is no index {name[:80]!r} to ask" if entry is None else entry.trouble,
                expected=", ".join(each.name for each in self.indexes) or "a finished index",
            )
        return entry

    def index_with_tokens(self, home: Home) -> str:
        """The first index of a home whose passages have token scores; empty if none has."""
        return next((entry.name for entry in self.indexes if entry.home is home and "captured" not in entry.about), "")

    def submit(self, asked: Asked) -> Job:
        """Puts a question into the queue; one that is there or has been answered is not asked again.

        Raises:
            UserError: it is too long, or empty. BusyError: too many wait.
        """
        check(asked)
        self.index_named(asked.index)
        with self._changed:
            for job in self._jobs.values():
                if job.asked == asked and job.state not in (FAILED, DROPPED):
                    job.looked_at = time.monotonic()
                    return job
            if len(self._waiting) >= WAITING:
                raise BusyError("too many questions wait already", got=len(self._waiting), fix="ask again in a moment")
            job = Job(asked)
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._forget()
            self._changed.notify_all()
            return job

    def _forget(self) -> None:
        ended = [name for name, job in self._jobs.items() if job.state in ENDED]
        for name in ended[: max(0, len(ended) - ANSWERS_KEPT)]:
            del self._jobs[name]

    def found(self, asked: Asked) -> Job | None:
        """The last job of a question that was not dropped, if it is remembered."""
        with self._changed:
            jobs = [job for job in self._jobs.values() if job.asked == asked and job.state != DROPPED]
        return jobs[-1] if jobs else None

    def look(self, name: str) -> Job:
        """A job, which is thereby kept alive.

        Raises:
            MissingError: it is not remembered.
        """
        with self._changed:
            job = self._jobs.get(name)
            if job is None:
                raise MissingError("that question is not known here any more", fix="ask it again")
            job.looked_at = time.monotonic()
            return job

    def ahead(self, job: Job) -> int:
        """How many questions are answered before this one."""
        with self._changed:
            if job not in self._waiting:
                return 0
            return list(self._waiting).index(job) + (self._running is not None)

    def leave(self, name: str) -> None:
        """The page that asked is gone: unless another one looks within a second, the question is dropped."""
        with self._changed:
            job = self._jobs.get(name)
            if job is not None:
                job.looked_at = min(job.looked_at, time.monotonic() - LEASE_S + 1.0)

    def answer_named(self, name: str) -> Answer:
        """The answer of a finished trace."""
        job = self.look(name)
        if job.state != DONE or not isinstance(job.result, Answer):
            raise MissingError("that question has no answer yet", fix="ask it again")
        return job.result

    def close(self) -> None:
        """Ends the worker and lets go of models and files."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=30)

    # The worker.

    def _work(self) -> None:
        try:
            self._open_first()
            while (job := self._next()) is not None:
                self._run(job)
        finally:
            for attributor in self._open.values():
                attributor.close()
            if self._owns_world:
                from headwater.train import parallel

                parallel.stop()

    def _open_first(self) -> None:
        """Opens the first index before anybody asks; what is wrong with it is said to who does."""
        if self.indexes:
            try:
                self._attributor(self.indexes[0])
            except Exception:
                return

    def _next(self) -> Job | None:
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            self._running = self._waiting.popleft()
            return self._running

    def _run(self, job: Job) -> None:
        began = time.perf_counter()
        try:
            self._require_wanted(job)
            job.state = "opening"
            entry = self.index_named(job.asked.index)
            attributor = self._attributor(entry)
            self._require_wanted(job)
            job.state = "reading"
            job.result = self._kinds()[job.asked.kind](job, attributor)
            job.about |= {"seconds": time.perf_counter() - began, "index": entry.name}
            job.state = DONE
        except _LeftError:
            job.state = DROPPED
        except UserError as error:
            job.error, job.state = str(error), FAILED
        except Exception as error:
            job.error, job.state = f"{type(error).__name__}: {error}"[:600], FAILED
        finally:
            with self._changed:
                self._running = None

    def _kinds(self) -> dict[str, Callable[[Job, Any], Any]]:
        return {"trace": self._trace, "continue": self._continue, "tokens": self._tokens}

    def _require_wanted(self, job: Job) -> None:
        if self._closed or time.monotonic() - job.looked_at > LEASE_S:
            raise _LeftError

    def _attributor(self, entry: IndexEntry) -> Any:
        from headwater.attribution.tracing.attributor import Attributor
        from headwater.train import parallel

        if entry.name not in self._open:
            world = parallel.joined()
            if world is None:
                world, self._owns_world = parallel.start(), True
            self._open[entry.name] = Attributor.open(entry.path, world=world)
            while len(self._open) > OPEN_INDEXES:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(entry.name)
        return self._open[entry.name]

    def _watch(self, job: Job) -> Callable[[int, int], None]:
        def watch(done: int, total: int) -> None:
            job.state, job.done, job.total = "scanning", done, total
            self._require_wanted(job)

        return watch

    def _trace(self, job: Job, attributor: Any) -> Answer:
        from headwater.attribution.search.duplicates import Collapse, scan_collapsed
        from headwater.attribution.search.options import ScanOptions
        from headwater.attribution.search.scorer import Scoring
        from headwater.attribution.tracing.continuing import answer_logprobs
        from headwater.attribution.tracing.queries import Query

        asked, opened = job.asked, attributor.opened[0]
        job.about["logprobs"] = answer_logprobs(opened, asked.prompt, asked.target).tolist()
        query = Query("question", asked.prompt, asked.target, against=asked.against)
        # One question is no task: alone it would suppress its own direction.
        options = ScanOptions(
            scoring=Scoring(curvature="train"), top_k=PROPONENTS, bottom_k=OPPONENTS, watch=self._watch(job)
        )
        began = time.perf_counter()
        sources = attributor.sources([query])
        found, *dropped = scan_collapsed(sources, options, Collapse(opened.passages.text, 0.8))
        job.about |= {"scanned": found.scanned, "scan_seconds": time.perf_counter() - began}
        answer = Answer("question", asked.prompt, asked.target, asked.against, complete=found.complete)
        ends = (
            (answer.proponents, found.passages[0], found.scores[0], dropped[0][0]),
            (answer.opponents, found.bottom_passages[0], found.bottom_scores[0], dropped[1][0]),
        )
        for listed, passages, scores, alike in ends:
            kept = [int(n) for n in passages if n >= 0]
            listed += [
                Found(
                    place,
                    opened.passages.id_of(n),
                    float(scores[place]),
                    opened.passages.text(n),
                    duplicates=[opened.passages.id_of(other) for other in alike.get(n, [])],
                )
                for place, n in enumerate(kept)
            ]
        return answer

    def _continue(self, job: Job, attributor: Any) -> list[Any]:
        from headwater.attribution.tracing.continuing import continuation

        tokens = []
        for token in continuation(attributor.opened[0], job.asked.prompt, CONTINUED_TOKENS):
            tokens.append(token)
            job.done, job.total = len(tokens), CONTINUED_TOKENS
            self._require_wanted(job)
        return tokens

    def _tokens(self, job: Job, attributor: Any) -> Found:
        from headwater.attribution.models.base import Example
        from headwater.attribution.search.scorer import Scoring
        from headwater.attribution.tracing.queries import Query
        from headwater.attribution.tracing.token_scores import TokenScorer

        asked, opened = job.asked, attributor.opened[0]
        number = opened.passages.number_of(asked.passage)
        sources = attributor.sources([Query("question", asked.prompt, asked.target, against=asked.against)])
        scorer = TokenScorer(sources, [opened.collector], Scoring(curvature="train"))
        passage = Example.of_passage(opened.passages, number)
        scores = scorer.scores(passage).numpy()[:, 0]
        pieces = opened.passages.tokenizer.pieces(passage.tokens.tolist())
        if int(passage.tokens[0]) == opened.passages.tokenizer.bos_id:
            pieces[0] = "⟨start⟩ "
        return Found(0, asked.passage, float(scores.sum()), tokens=pieces, token_scores=scores.tolist())


def check(asked: Asked) -> None:
    """Refuses a question that is too long or lacks a part."""
    limits = {"prompt": PROMPT_CHARACTERS, "target": TARGET_CHARACTERS, "against": TARGET_CHARACTERS, "passage": 4_000}
    for name, limit in limits.items():
        value = getattr(asked, name)
        if len(value) > limit:
            raise UserError(f"the {name} is too long", got=f"{len(value):,} characters", expected=f"at most {limit:,}")
    if not asked.prompt.strip():
        raise UserError("the question has no prompt", expected="the words before the answer")
    if asked.kind != "continue" and not asked.target.strip():
        raise UserError(
            "the question has no answer to explain",
            expected="what follows the prompt",
            fix="type one, or let the model go on",
        )
