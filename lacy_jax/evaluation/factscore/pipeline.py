"""FActScore from texts to figures, with progress, and resumable."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from etils import epath

from lacy_jax.cascade import Generation
from lacy_jax.cascade.partners.database import subject_of
from lacy_jax.cascade.passages import read_documents
from lacy_jax.clients import CompletionsClient, NoAnswer, PriceGuard, Tally
from lacy_jax.clients.completions import server_of
from lacy_jax.corpus.compression import find_files
from lacy_jax.errors import ConfigError, PartnerError
from lacy_jax.evaluation.factscore.formats import (
    AtomicFact,
    Entry,
    output_path,
    read_demonstrations,
    write_entries,
    write_output,
)
from lacy_jax.evaluation.factscore.judging import EmbeddedJudge, Judge
from lacy_jax.evaluation.factscore.knowledge import KnowledgeSource
from lacy_jax.evaluation.factscore.prompting import (
    JUDGE_TOKENS,
    SPLIT_TOKENS,
    PromptedJudge,
    PromptedSplitter,
)
from lacy_jax.evaluation.factscore.scoring import GAMMA, JudgedTopic, abstains, factscore_figures
from lacy_jax.evaluation.factscore.splitting import ClauseSplitter, GivenFacts, Splitter
from lacy_jax.evaluation.kept import Kept, key_of
from lacy_jax.progress import Progress

EMBEDDED = "embedded"
LENIENT = "lenient"
GIVEN = "given"


def run_factscore(
    entries: Sequence[Entry],
    knowledge: KnowledgeSource,
    *,
    out: epath.PathLike,
    splitter: Splitter | None = None,
    judge: Judge | None = None,
    gamma: int = GAMMA,
    given_facts: bool = False,
    exact_titles: bool = False,
) -> dict[str, Any]:
    """Score texts.

    Writes `out` (JSONL, the texts with their atomic facts, which the original tool reads with --use_atomic_facts) and
    OUT_factscore_output.json beside it. Verdicts are stored in OUT.partial.jsonl as they come, so that an interrupted
    run can go on; this file is removed at the end.

    Args:
      entries: texts with their topics.
      splitter, judge: None = the embedded ones.
      gamma: number of facts above which there is no length penalty; 0 = never a penalty.
      given_facts: use the model's atomic facts in the entries, if there are any, instead of splitting.
      exact_titles: a topic is covered only by an article of exactly its name (`KnowledgeSource.title`).

    Returns:
      The figures of `scoring.factscore_figures`.

    Raises:
      PartnerError: a model server failed, or most of its answers are unusable; verdicts so far are kept.
      DataError: there are no texts.
    """
    splitter, judge = splitter or ClauseSplitter(), judge or EmbeddedJudge()
    kept, tallies = Kept(out), (Tally(f"splitter {splitter.name}"), Tally(f"judge {judge.name}"))
    topics: list[JudgedTopic] = []
    annotated: list[Entry] = []
    with Progress("factscore", total=len(entries), unit="texts") as bar:
        for entry in entries:
            settings = [splitter.identity, judge.identity, knowledge.identity, given_facts, exact_titles]
            facts = [fact.text for fact in entry.model_facts] if given_facts else None
            key = key_of(entry.topic, entry.output, *settings, *([facts] if facts else []))
            record = kept.get(key)
            if record is None:
                try:
                    title = knowledge.title(entry.topic, exact=exact_titles)
                    record = _judge(entry, title, knowledge, splitter, judge, given_facts, tallies)
                except PartnerError as error:
                    raise PartnerError(
                        f"{error}; {len(topics)} of {len(entries)} texts are judged and kept: run again to go on"
                    ) from error
                if (
                    None not in record["supported"] and not record["unsplit"]
                ):  # Otherwise the next run asks again.
                    kept.put(key, record)
            topic, text = _from_record(entry, record)
            topics.append(topic)
            annotated.append(text)
            bar.update(1)
    for tally in tallies:
        tally.settle()
    figures = factscore_figures(
        topics, judge=judge.name, splitter=splitter.name, knowledge=knowledge.name, gamma=gamma
    )
    figures["why_none"] = "; ".join(tally.summary() for tally in tallies if tally.missing)
    write_entries(out, annotated)
    write_output(output_path(out), figures, [topic.decisions for topic in topics])
    kept.done()
    return figures


def entries_of_generations(generations: Sequence[Generation]) -> list[Entry]:
    """Texts of `lacy generate` with the name in the prompt as topic: "Ada Bell was" and "Ada Bell (" are about Ada Bell."""
    return [
        Entry(
            subject_of(generation.prompt) or generation.prompt.strip(),
            generation.prompt + generation.text,
            generation.prompt,
        )
        for generation in generations
    ]


def open_knowledge(path: str, folder: epath.PathLike) -> KnowledgeSource:
    """Open a database, or make one in `folder` (once) from a JSONL corpus with titles, given as a file or a glob.

    Raises:
      DataError: it is missing or cannot be used.
    """
    if path.endswith((".db", ".sqlite", ".sqlite3")):
        return KnowledgeSource(path)
    stats = [(file, epath.Path(file).stat()) for file in find_files(path, "--knowledge")]
    stamps = [(file, stat.length, stat.mtime) for file, stat in stats]
    mark = hashlib.sha256(str(stamps).encode()).hexdigest()[:8]
    name = re.sub(r"[^\w-]", "", epath.Path(path).name.split(".")[0]) or "articles"
    database = epath.Path(folder) / f"{name}-{mark}.db"
    if database.exists():
        return KnowledgeSource(str(database))
    with Progress("knowledge source", unit="articles") as bar:

        def counted() -> Any:
            for document in read_documents(path, "--knowledge"):
                yield document
                bar.update(1)

        return KnowledgeSource.build(str(database), counted())


def get_splitter(
    spec: str, demonstrations: str = "", guard: PriceGuard | None = None, max_tokens: int = 0
) -> Splitter:
    """The splitter that `spec` names.

    Args:
      spec: "embedded", "given" (the atomic facts in the texts' annotations), or a completions server
        "http://HOST:PORT/v1#MODEL" ("chat+http://..." for a chat model).
      demonstrations: file of demonstrations, needed for a server.
      guard: limits what a server may cost.
      max_tokens: most tokens of a server's answer; 0 = the default of the task.

    Raises:
      ConfigError: `spec` is unknown, or a server has no demonstrations.
      DataError: the file of demonstrations is bad.
    """
    if spec == EMBEDDED:
        return ClauseSplitter()
    if spec == GIVEN:
        return GivenFacts()
    client = _client(spec, "--splitter", guard)
    if not demonstrations:
        raise ConfigError("--splitter: a served model needs --demonstrations=FILE.json, the published ones")
    return PromptedSplitter(client, read_demonstrations(demonstrations), max_tokens or SPLIT_TOKENS)


def get_judge(spec: str, guard: PriceGuard | None = None, max_tokens: int = 0) -> Judge:
    """Like `get_splitter`, for the judge, which may also be "lenient": the embedded one for articles that are not whole."""
    if spec in (EMBEDDED, LENIENT):
        return EmbeddedJudge(lenient=spec == LENIENT)
    return PromptedJudge(_client(spec, "--judge", guard), max_tokens or JUDGE_TOKENS)


def _client(spec: str, what: str, guard: PriceGuard | None) -> CompletionsClient:
    url, model, chat = server_of(spec, what)
    return CompletionsClient(url, model, chat=chat, timeout_s=120.0, guard=guard)


def _judge(
    entry: Entry,
    title: str | None,
    knowledge: KnowledgeSource,
    splitter: Splitter,
    judge: Judge,
    given_facts: bool,
    tallies: tuple[Tally, Tally],
) -> dict[str, Any]:
    """Title, sentences with their facts, and verdicts (None = no verdict) of one text, JSON-safe.

    A sentence that abstains states no fact.
    """
    split: list[tuple[str, Sequence[AtomicFact]]] = []
    unsplit = 0
    if given_facts and entry.sentences is not None:
        split = [(sentence, facts) for sentence, facts, _ in entry.sentences]
    elif not abstains(entry.output.removeprefix(entry.input)):
        for sentence, found in splitter.split(entry.topic, entry.output):
            known = tallies[0].add(found)
            unsplit += isinstance(known, NoAnswer)
            split.append((sentence, [] if isinstance(known, NoAnswer) or abstains(sentence) else known))
    facts = [fact.text for _, own in split for fact in own]
    verdicts: list[bool | None] = []
    if title is not None and facts:
        passages = [knowledge.retrieve(title, fact) for fact in facts]
        for verdict in map(tallies[1].add, judge.supported(entry.topic, facts, passages)):
            verdicts.append(None if isinstance(verdict, NoAnswer) else bool(verdict))
    return {
        "title": title or "",
        "sentences": [[sentence, [fact.text for fact in own]] for sentence, own in split],
        "supported": verdicts,
        "unsplit": unsplit,
    }


def _from_record(entry: Entry, record: dict[str, Any]) -> tuple[JudgedTopic, Entry]:
    facts = tuple(fact for _, own in record["sentences"] for fact in own)
    topic = JudgedTopic(
        entry.topic, record["title"], facts, tuple(record["supported"]), record.get("unsplit", 0)
    )
    human = {sentence: labelled for sentence, _, labelled in entry.sentences or ()}
    sentences = tuple(
        (sentence, tuple(AtomicFact(fact) for fact in own), human.get(sentence, ()))
        for sentence, own in record["sentences"]
    )
    return topic, Entry(entry.topic, entry.output, entry.input, entry.cat, sentences if facts else None)
