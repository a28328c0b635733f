"""Stage 09: from images and metadata to image–text pairs: read, measure, ask, check.

    images  →  store (encoded, measured)  →  questions  →  teacher, ledger  →  pairs  →  flags

Every teacher goes the same way, the rule-based one too. Answers stand in one ledger a preset, so a
run that was killed, or one with another setting, asks nothing again that has been answered.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from derm_rl import paths, provenance
from derm_rl.captions import questions, selfinstruct, sources, tables
from derm_rl.captions.ledger import Ledger
from derm_rl.captions.prompting import present, render
from derm_rl.captions.runner import Estimate, Summary, ask_all, estimate, replay
from derm_rl.captions.schema import PAIR_COLUMNS, Question, Reply, Request, Teacher
from derm_rl.captions.store import Store, Stored
from derm_rl.config import ConfigError
from derm_rl.errors import Mendable
from derm_rl.io import atomic_path, write_csv

if TYPE_CHECKING:
    import pyarrow as pa

    from derm_rl.config import Config

STAGE = sources.STAGE
_FROM_IMAGE = (
    "source", "modality", "patient_id", "lesion_id", "diagnosis", "label", "skin_type", "licence",
    "attribution",
)  # fmt: skip
COLUMNS = (*PAIR_COLUMNS, "ledger_key")
PROPOSED = ["language", "question", "accepted", "reason"]
_BATCH = 4096  # rows that are held as Python objects
NO_PROPOSALS = pd.DataFrame(columns=PROPOSED)


class UnfinishedError(Mendable, RuntimeError):
    """Asking stopped before all was asked; what was answered is in the ledger."""


def make(config: Config, progress: bool = True) -> Path:
    """Stage 09 of a preset; returns its folder.

    Writes ``images.csv`` (the table), ``exclusions.csv``, ``parts/`` (encoded images and
    measurements), ``proposals.csv`` (questions that the teacher proposed, and what came of each),
    ``pairs.parquet``, ``scores.csv``, ``flags.csv`` and ``checks.csv`` (of the checks),
    ``counts.csv``, ``modes.csv`` and ``stage.json``. The ledger is :func:`ledger_path`.

    Raises:
        UnfinishedError: the budget is spent, or it was interrupted. The same call goes on.
    """
    from derm_rl.captions import checks

    folder = config.stage_dir(STAGE)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.json").unlink(missing_ok=True)  # unfinished from here on
    frame, images = sources.prepare(config, progress)
    teacher = load_teacher(config)
    with Ledger(ledger_path(config)) as ledger:
        proposed = propose(config, frame, images, teacher, ledger, progress)
        write_csv(folder / "proposals.csv", proposed)
        asked = conversations(frame, images, plan(config, frame, proposed))
        pairs, summary = ask(config, asked, teacher, ledger, progress)
    write_pairs(folder / "pairs.parquet", pairs)
    measured = images.measurements()
    scores = checks.scores(pairs, frame, measured, progress=progress)
    if config.captions.judge:
        second = load_teacher(config, config.captions.judge)
        with Ledger(ledger_path(config)) as ledger:
            pace = _pace(config) | {"progress": progress}
            found = checks.judge(second, pairs, images.image, ledger, **pace)
        scores = pd.concat([scores, found], ignore_index=True)
    flags = checks.flagged(scores)
    write_csv(folder / "scores.csv", scores)
    write_csv(folder / "flags.csv", flags)
    write_csv(folder / "checks.csv", checks.report(pairs, flags))
    counts = tables.counts(frame, pairs)
    write_csv(folder / "counts.csv", counts)
    write_csv(folder / "modes.csv", tables.rationalization(pairs))
    provenance.record_metrics(config, STAGE, tables.metrics(config, pairs, flags))
    provenance.stamp(config, STAGE, pairs=len(pairs), images=len(frame), teacher=teacher.name)
    print(f"{teacher.name}: {summary}")
    print(counts.to_string(index=False, na_rep="–"))
    return folder


def load(config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pairs and flags of a finished stage."""
    folder = config.require(STAGE)
    flags = pd.read_csv(folder / "flags.csv", dtype="string", keep_default_na=False)
    return pd.read_parquet(folder / "pairs.parquet"), flags


# --------------------------------------------------------------------------------- questions


def plan(config: Config, frame: pd.DataFrame, proposed: pd.DataFrame) -> Iterator[Question]:
    """The questions of a preset, image by image."""
    settings = config.captions
    accepted = proposed[proposed["accepted"].astype(bool)]
    proposals = [
        questions.Proposal(text, "overview", language)
        for text, language in zip(accepted["question"], accepted["language"], strict=True)
    ]
    return questions.plan(
        frame,
        config.seed,
        languages=settings.languages,
        general=settings.general,
        specific=settings.specific,
        multi=settings.multi,
        modes={"grounded": settings.grounded, "blind": 1 - settings.grounded},
        proposals=proposals,
        proposed=settings.proposed,
    )


def conversations(
    frame: pd.DataFrame, images: Store, asked: Iterable[Question]
) -> Iterator[list[Any]]:
    """Requests, conversation by conversation; later turns are made from the answers so far."""
    rows = _rows(frame)
    for image_id, group in groupby(asked, key=lambda q: q.image_id):
        row = next(row for row in rows if row["image_id"] == image_id)
        stored = images[image_id]
        for _, turns in groupby(group, key=lambda q: q.conversation):
            yield [
                _request(question, row, stored) if question.turn == 0
                else _later(question, row, stored)
                for question in turns
            ]  # fmt: skip


def _rows(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Rows as mappings without what is missing."""
    columns = list(frame.columns)
    for values in frame.itertuples(index=False, name=None):
        row = dict(zip(columns, values, strict=True))
        yield {name: value for name, value in row.items() if present(row, name) is not None}


def _request(
    question: Question,
    row: Mapping[str, Any],
    stored: Stored,
    history: Iterable[tuple[str, str]] = (),
) -> Request:
    prompt = render(question, row, history)
    return Request(question, prompt, stored.image, row, stored.measurements)


def _later(question: Question, row: Mapping[str, Any], stored: Stored) -> Any:
    def turn(done: Iterable[tuple[Request, Reply]]) -> Request:
        history = [(request.question.text, reply.answer.answer) for request, reply in done]
        return _request(question, row, stored, history)

    return turn


def propose(
    config: Config,
    frame: pd.DataFrame,
    images: Store,
    teacher: Teacher,
    ledger: Ledger,
    progress: bool = True,
) -> pd.DataFrame:
    """Self-instruct: questions that the teacher proposes, and whether each entered the pool.

    Returns:
        ``language, question, accepted, reason``, in the order in which they were considered.
    """
    settings, rows = config.captions, []
    chosen = frame.sample(min(settings.self_instruct, len(frame)), random_state=config.seed)
    pool = selfinstruct.Pool.of_questions()
    asked = []
    for language in settings.languages:
        for number, name in enumerate(chosen["image_id"]):
            found = images[name]
            asked.append(
                selfinstruct.request(
                    name, found.image, pool, language,
                    seed=number, measurements=found.measurements,
                )
            )  # fmt: skip
    if asked:
        _finished(ask_all(teacher, asked, ledger, **_pace(config), progress=progress))
    for request, _, reply in replay(teacher, asked, ledger):
        language = request.question.language
        for text, verdict in selfinstruct.considered(reply, pool, language):
            rows.append((language, text, verdict.accepted, verdict.reason))
    return pd.DataFrame(rows, columns=PROPOSED)


# ----------------------------------------------------------------------------------- answers


def ledger_path(config: Config) -> Path:
    """One for all runs of a preset: what is answered is answered, under any overrides."""
    return paths.RUNS / config.name / "captions_ledger.sqlite"


def load_teacher(config: Config, name: str | None = None) -> Teacher:
    """The teacher that a preset names, or another; a provider's key is read when it is asked."""
    settings, name = config.captions, name or config.captions.teacher
    if name == "measured":
        from derm_rl.captions.measured import MeasuredTeacher

        return MeasuredTeacher()
    from derm_rl.captions.providers import ProviderTeacher

    return ProviderTeacher(
        name, base_url=settings.base_url, api_key_env=settings.api_key_env, seed=config.seed
    )


def _pace(config: Config) -> dict[str, Any]:
    settings = config.captions
    names = ("concurrency", "requests_per_minute", "budget", "timeout", "attempts")
    return {name: getattr(settings, name) for name in names}


def _finished(summary: Summary) -> Summary:
    """A part must not pass for the whole: the stage would count as done, and never go on."""
    if summary.stopped:
        raise UnfinishedError(f"{summary}; answers are kept in the ledger")
    return summary


def ask(
    config: Config,
    asked: Iterable[list[Any]],
    teacher: Teacher,
    ledger: Ledger,
    progress: bool = True,
) -> tuple[pd.DataFrame, Summary]:
    """Ask everything; the pairs in the order of images and turns, and the run's summary."""
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    batches = []  # as Arrow columns, a row takes a third of what its Python objects take

    def collect(request: Request, key: str, reply: Reply) -> None:
        rows.append(pair(request, key, reply, teacher))
        if len(rows) == _BATCH:
            batches.append(pa.RecordBatch.from_pylist(rows, schema=_schema()))
            rows.clear()

    summary = _finished(
        ask_all(teacher, asked, ledger, **_pace(config), progress=progress, callback=collect)
    )
    batches.append(pa.RecordBatch.from_pylist(rows, schema=_schema()))
    pairs = pa.Table.from_batches(batches).to_pandas()
    order = ["image_id", "conversation", "turn"]
    return pairs.sort_values(order, kind="stable").reset_index(drop=True), summary


def pair(request: Request, key: str, reply: Reply, teacher: Teacher) -> dict[str, Any]:
    """One row of a table of pairs."""
    question, answer, asked = request.question, reply.answer, key
    if hasattr(teacher, "code"):
        # The key changes with every edit of the code, but what a reader has said of a pair holds
        # as long as image, question and answer are the same.
        asked = f"{sha256(request.image).hexdigest()}\0{question.text}\0{reply.raw}"
    name = f"{question.conversation}\0{question.turn}\0{asked}".encode(errors="surrogatepass")
    findings = [] if answer is None else [f.model_dump() for f in answer.findings]
    return {
        # Not the key alone: two images may have the same content.
        "pair_id": sha256(name).hexdigest()[:20],
        "image_id": question.image_id,
        "question_type": question.type,
        "style": question.style,
        "conversation": question.conversation,
        "turn": question.turn,
        "language": question.language,
        "mode": question.mode,
        "question": storable(question.text),
        "answer": None if answer is None else storable(answer.answer),
        "findings": storable(json.dumps(findings, ensure_ascii=False)),
        "confidence": None if answer is None else answer.confidence,
        "abstained": None if answer is None else answer.abstained,
        "teacher": teacher.name,
        "status": reply.status,
        "reason": storable(reply.reason),
        **{column: request.row.get(column) for column in _FROM_IMAGE},
        "ledger_key": key,
    }


def storable(text: str) -> str:
    """The text with lone surrogates, which no file format holds, as U+FFFD; the ledger has all."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _schema() -> pa.Schema:
    """Every column has its own type, whatever it holds."""
    import pyarrow as pa

    kinds = {"turn": pa.int64(), "confidence": pa.float64(), "abstained": pa.bool_()}
    kinds |= {"skin_type": pa.int64()}
    return pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])


def write_pairs(path: str | Path, pairs: pd.DataFrame) -> Path:
    """Write a table of pairs as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_path(path) as temporary:
        rows = pa.Table.from_pandas(pairs, schema=_schema(), preserve_index=False)
        pq.write_table(rows.replace_schema_metadata(None), temporary, compression="zstd")
    return Path(path)


@contextmanager
def opened(config: Config) -> Iterator[tuple[Any, Iterator[list[Any]], Ledger]]:
    """Provider, requests and ledger of a preset, for :mod:`derm_rl.captions.batch`.

    What the teacher proposes itself is part of a live run alone.
    """
    config.stage_dir(STAGE).mkdir(parents=True, exist_ok=True)
    teacher = provider(config)
    frame, images = sources.prepare(config)
    with Ledger(ledger_path(config)) as ledger:
        yield teacher, conversations(frame, images, plan(config, frame, NO_PROPOSALS)), ledger


def provider(config: Config) -> Any:
    """The language model that a preset names.

    Raises:
        ConfigError: it names the rule-based teacher, which needs no batches.
    """
    if config.captions.teacher == "measured":
        raise ConfigError(
            "captions.teacher is measured, the rule-based teacher, which answers at once; name a "
            "model, e.g. --set captions.teacher=openai:gpt-4o"
        )
    return load_teacher(config)


def dry_run(config: Config, price: tuple[float, float] | None = None) -> Estimate:
    """What asking a preset's questions would take, without asking, measuring or writing anything.

    Images that no run has prepared yet count as unanswered, and as square.

    Args:
        price: US dollars per million input and output tokens; default: what is known of the model.
    """
    teacher = load_teacher(config)
    frame = sources.kept(config, sources.read(config, verify=False)[0])
    images = sources.prepared(config, frame)
    if teacher.name == "measured":
        price = price or (0.0, 0.0)
    elif price is None:
        from derm_rl.captions.providers import model_price

        price = model_price(teacher.name)
    asked = conversations(frame, images, plan(config, frame, NO_PROPOSALS))
    if not ledger_path(config).is_file():
        return estimate(asked, price)
    with Ledger(ledger_path(config)) as ledger:
        return estimate(asked, price, teacher=teacher, ledger=ledger)
