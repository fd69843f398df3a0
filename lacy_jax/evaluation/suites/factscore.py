"""Suite factscore: FActScore (arXiv:2305.14251) of the run's texts, or of given ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from lacy_jax import files
from lacy_jax.cascade import Prompt, read_generations
from lacy_jax.evaluation import factscore
from lacy_jax.evaluation.factscore import formats, pipeline
from lacy_jax.evaluation.factscore.splitting import normal_topic
from lacy_jax.evaluation.run_texts import generate_texts, make_partner, make_prompts
from lacy_jax.evaluation.suites.suite import (
    DEMONSTRATIONS,
    JUDGE,
    KNOWLEDGE,
    LIMIT,
    MAX_TOKENS,
    SERVER,
    SPLITTER,
    SUITES,
    Figures,
    Option,
    Reported,
    Request,
    Suite,
    Units,
    mapping,
    share_of,
)
from lacy_jax.formatting import Table, number, percent, with_interval
from lacy_jax.run_files import FACTSCORE_FOLDER

TEXTS = Option("texts", "texts to score, of `lacy generate` or in FActScore's format")
ENTITIES = Option("entities", "file of entities to write about")


def _run(request: Request) -> Figures:
    texts = request[TEXTS]
    if texts:
        entries = _given_texts(texts)
        folder = epath.Path(request.workdir) if request.workdir else epath.Path(texts).parent
        out = folder / FACTSCORE_FOLDER / f"{epath.Path(texts).name.removesuffix('.jsonl')}.jsonl"
    else:
        entries, out = _write_about(request)
    entries = entries[: request[LIMIT] or None]
    knowledge = pipeline.open_knowledge(
        request.need(KNOWLEDGE, "a JSONL corpus with titles, or a database"), out.parent
    )
    splitter, judge = served(request)
    figures = factscore.run_factscore(
        entries,
        knowledge,
        out=out,
        splitter=splitter,
        judge=judge,
        given_facts=request[SPLITTER] == pipeline.GIVEN,
        # Topics that were named must be titles, as in the original; our own prompts leave parentheses out.
        exact_titles=bool(request[ENTITIES]) or not _ours(entries),
    )
    figures["texts_file"] = str(out)
    figures["by_topic"] = _by_topic(out)
    return figures


def _text(figures: Figures) -> str:
    return f"{factscore.score_line(figures)}\n{formats.output_path(figures['texts_file'])}"


def served(request: Request) -> tuple[factscore.Splitter, factscore.Judge]:
    """Splitter and judge that the options name, under one guard."""
    guard, most = request.guard(), request[MAX_TOKENS]
    return (
        factscore.get_splitter(request[SPLITTER], request[DEMONSTRATIONS], guard, most),
        factscore.get_judge(request[JUDGE], guard, most),
    )


def _by_topic(out: epath.Path) -> dict[str, list[int]]:
    """{topic: [supported, facts]} of the texts that were judged, all of a topic, for comparisons paired over topics."""
    decisions = files.read_json(formats.output_path(out), "scores")["decisions"]
    found: dict[str, list[int]] = {}
    for entry, decided in zip(formats.read_entries(out), decisions, strict=True):
        verdicts = [verdict for fact in decided or () if (verdict := fact["is_supported"]) is not None]
        if verdicts:
            before = found.get(entry.topic, [0, 0])
            found[entry.topic] = [before[0] + sum(verdicts), before[1] + len(verdicts)]
    return found


def _given_texts(path: str) -> list[formats.Entry]:
    """Texts in FActScore's format, or of `lacy generate`."""
    first = (
        epath.Path(path).read_text().lstrip()[:20_000].split("\n", 1)[0] if epath.Path(path).exists() else ""
    )
    if '"gate_scores"' in first:
        return pipeline.entries_of_generations(read_generations(path))
    return formats.read_entries(path)


def _ours(entries: Sequence[formats.Entry]) -> bool:
    """Whether the texts were generated here from prompts, which FActScore's own files do not hold."""
    return all(entry.input and entry.output.startswith(entry.input) for entry in entries)


def _write_about(request: Request) -> tuple[list[formats.Entry], epath.Path]:
    """Texts of the run about the entities given, or its own prompts; and the file in which they are judged."""
    run, config = request.run()
    partner = make_partner(config)
    if request[ENTITIES]:
        names = formats.read_entities(request[ENTITIES])[: request[LIMIT] or None]
        prompts = [Prompt(normal_topic(name), name) for name in names]
    else:
        prompts = make_prompts(run, config)[: request[LIMIT] or None]
    written = generate_texts(run, config, prompts, partner)
    entries = pipeline.entries_of_generations(written.texts)
    if request[ENTITIES]:
        entries = [dataclasses.replace(e, topic=p.id) for e, p in zip(entries, prompts, strict=True)]
    return entries, run.workdir / FACTSCORE_FOLDER / written.path.name


def _table(reported: Reported) -> Table:
    rows = tuple(
        (
            name,
            with_interval(f.get("score"), f.get("score_ci")),
            with_interval(f.get("init_score"), f.get("init_score_ci")),
            number(f.get("facts_per_text")),
            percent(f.get("abstention_rate")),
            f"{f.get('covered')} of {f.get('texts')}",
            str(f.get("judge")),
            str(f.get("splitter")),
        )
        for name, f in reported
    )
    head = (
        "run", "score", "unpenalised", "facts per text", "abstained", "topics covered", "judge", "splitter",
    )  # fmt: skip
    note = (
        "95 % bootstrap intervals over entities. Scores of different judges or splitters cannot be compared."
    )
    return Table("FActScore", head, rows, note)


def _units(figures: Mapping[str, Any]) -> Units:
    shares = {
        topic: {"": (pair[0] / pair[1], 1.0)}
        for topic, pair in mapping(figures, "by_topic").items()
        if _pair(pair) and pair[1]
    }
    return {f"FActScore, unpenalised, judge {figures['judge']}": shares} if shares else {}


def _pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, int | float) for v in value)


SUITES.add(
    Suite(
        "factscore",
        "is each atomic fact of a text supported by articles",
        _run,
        _text,
        options=(LIMIT, KNOWLEDGE, TEXTS, ENTITIES, JUDGE, SPLITTER, DEMONSTRATIONS, *SERVER),
        table=_table,
        comparable=lambda f: (f.get("judge"), f.get("splitter"), f.get("knowledge_source")),
        units=_units,
        headline=("FActScore", *share_of("score")),
    )
)
