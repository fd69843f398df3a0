"""Openings of Wikipedia biographies: every gate and every kind of partner, at a size that two CPU cores can train.

    python experiments/wiki_openings.py --workdir=runs/wiki_openings        # all of it; a second call goes on
    lacy report --workdir=runs/wiki_openings

Text: the first sentences, up to 500 characters, of the 47,059 articles in `wiki/bios_train.jsonl.xz` below the folder
that the environment variable LACY_DATA names (default ../shared/data). An opening says who someone was - names, dates,
places, occupations - so a model of this size meets every person's facts, instead of a few people's lives. Tokenizer:
8,192 pieces, trained on the same text. Labels: `auto` (docs/labels.md).

Trained: `lacy`, `ntp`, `loss` (2.1 M parameters) and `partner`, a plain model of 6.1 M parameters on the same text. Then 100
people of the training text and 100 whom no model has read about are written about by each method with each gate that it
can have, at the same call budget, with three partners: the larger model, BM25 over the articles of all of them and 1,900
others, and a database (infobox values of featured articles, and the life dates of all openings). Every
text is judged by FActScore with the embedded splitter and judge (how good they are: docs/results/factscore_judge.md).

`get_config` args, comma-separated:
  (none)   the `lacy` model.
  smoke    a toy of everything; under a minute.
  POLICY   ntp, loss, hardest ... instead of lacy.
  partner  the larger plain model.

Cost and results: docs/results/wiki_openings.md.
"""

from __future__ import annotations

import argparse
import calendar
import functools
import itertools
import json
import lzma
import os
import pathlib
import random
import re
import sys
import urllib.parse
from collections.abc import Iterator
from typing import Any

import ml_collections

from lacy_jax import files
from lacy_jax.cascade import FactDatabase, Prompt, get_partner
from lacy_jax.cascade.passages import PassageIndex
from lacy_jax.config import get_default_config
from lacy_jax.corpus import Document
from lacy_jax.corpus.open import opening
from lacy_jax.dataset import build_dataset
from lacy_jax.errors import LacyError
from lacy_jax.evaluation.evaluate import evaluate_run
from lacy_jax.evaluation.factscore import KnowledgeSource
from lacy_jax.run_files import DATASET_FOLDER, STUDY_FILE
from lacy_jax.studies.gate_study import Setting, gate_study, study_table
from lacy_jax.training import load_run, train

MODELS = ("lacy", "ntp", "loss", "partner")
GATES = {
    "lacy": ("call_margin", "call_prob", "call_logit", "calibrated", "entropy", "margin", "random", "oracle"),
    "ntp": ("calibrated", "entropy", "margin", "random", "oracle"),
    "loss": ("call_margin", "call_prob", "call_logit", "calibrated", "oracle"),
}
PARTNERS = {"model": "token", "documents": "span", "database": "span"}  # Name and reach of one call.
ATTRIBUTES = ("birth_date", "birth_place", "death_date", "death_place", "nationality", "occupation", "spouse", "alma_mater",
              "party", "allegiance", "branch", "religion", "awards")  # fmt: skip
BUDGET = 0.22
MAX_CHARS = 500
_LIFE = re.compile(r"\(([^()–]*?\d{3,4})\s*–\s*([^()–]*?\d{3,4})\)")
_BORN = re.compile(r"\(born ([^()]*?\d{4})\)")

_PARTNER = {"d_model": 256, "n_heads": 8, "n_layers": 5, "d_ff": 704}
_SMALL = {"d_model": 128, "n_heads": 4, "n_layers": 5, "d_ff": 384}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Config of one run; see the module docstring for `arg`."""
    words = set(filter(None, arg.split(",")))
    smoke, partner = "smoke" in words, "partner" in words
    words -= {"smoke", "partner"}
    config = get_default_config()
    config.name = "wiki_openings_partner" if partner else "wiki_openings"
    config.objective.policy = words.pop() if words else "ntp" if partner else "lacy"

    config.corpus.kind = "jsonl"
    config.corpus.path = os.path.join(
        os.environ.get("LACY_DATA", "../shared/data"), "wiki/bios_train.jsonl.xz"
    )
    config.corpus.max_chars = MAX_CHARS
    config.corpus.max_documents = 300 if smoke else 0
    config.tokenizer.vocab_size = 1024 if smoke else 8192
    config.dataset.path = "runs/wiki_openings/dataset" + ("_smoke" if smoke else "")
    config.dataset.workers = 2
    config.dataset.valid_fraction = 0.1 if smoke else 0.01

    config.model.family = "llama"
    config.model.preset = "tiny"
    if not smoke:
        config.model.update(_PARTNER if partner else _SMALL)
    config.input.seq_len = 64 if smoke else 256
    config.input.batch_size = 4 if smoke else 8
    config.train.steps = 12 if smoke else 3500
    config.train.log_every = 2 if smoke else 25
    config.train.eval_every = 6 if smoke else 700
    config.train.eval_batches = 2 if smoke else 16
    config.checkpoint.every = 6 if smoke else 250
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 4 if smoke else 200
    config.generate.num_prompts = 2 if smoke else 100
    config.generate.max_new_tokens = 16 if smoke else 128
    config.generate.batch_size = 50
    return config


def main(argv: list[str] | None = None) -> int:
    """Prepare, train, write, judge; a second call goes on where the first was stopped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/wiki_openings"))
    parser.add_argument("--people", type=int, default=100, help="of each kind, seen and unseen")
    parser.add_argument("--smoke", action="store_true", help="a toy size, to see every step run")
    options = parser.parse_args(argv)
    try:
        train_models(options.workdir, options.smoke)
        people = choose_people(options.people)
        results = study(options.workdir, people, get_config().generate.batch_size)
    except LacyError as error:
        print(f"wiki_openings: {error}", file=sys.stderr)
        return 2
    files.write_json(options.workdir / STUDY_FILE, results)
    print(study_table(results))
    return 0


def train_models(workdir: pathlib.Path, smoke: bool = False) -> None:
    """The dataset, the four runs, and how their gates do as detectors on held-out text."""
    for model in MODELS:
        config = get_config(f"{model}{',smoke' if smoke else ''}")
        config.dataset.path = str(workdir / DATASET_FOLDER)
        build_dataset(config, config.dataset.path)
        train(config, workdir / model)
    for model in MODELS:
        evaluate_run(workdir / model, baseline=workdir / "ntp")


def choose_people(count: int) -> dict[str, list[Document]]:
    """{"seen", "unseen": documents}: people with an infobox first, since the database knows most about them."""
    rng = random.Random(0)
    featured, train_text, unseen_text = (
        _read(name) for name in ("featured_bios", "bios_train", "bios_unseen")
    )
    trained = {document.title for document in train_text}
    known = {one["title"] for one in _records("featured_bios") if one["infobox"]}
    chosen = {}
    for kind, rest in (("seen", train_text), ("unseen", unseen_text)):
        mine = [d for d in featured if d.title in known and (d.title in trained) == (kind == "seen")]
        more = [d for d in rest if d.title not in known]
        half = min(count // 2, len(mine))
        chosen[kind] = rng.sample(mine, half) + rng.sample(more, count - half)
    return chosen


def study(workdir: pathlib.Path, people: dict[str, list[Document]], rows: int) -> dict[str, Any]:
    """Texts of every method, gate and partner about all people, judged; see `gate_study`."""
    runs = {model: load_run(workdir / model) for model in MODELS}
    facts, articles = workdir / "facts.db", workdir / "passages"
    if not facts.exists():
        FactDatabase.build(facts, _facts(), _read("bios_train", MAX_CHARS))
    if not articles.exists():
        PassageIndex.build(itertools.chain(*people.values(), _read("bios_unseen"))).save(articles)
    specs = {"model": f"checkpoint:{workdir / 'partner'}", "documents": f"documents:{articles}", "database": f"database:{facts}"}  # fmt: skip
    partners = {}
    for name, reach in PARTNERS.items():
        partner = get_partner(specs[name], reach=reach, load_run=load_run, rows=rows)
        assert partner is not None
        partners[name] = (partner, reach)
    settings = [Setting(model) for model in MODELS] + [
        Setting(model, gate, partner)
        for model, gates in GATES.items()
        for gate in gates
        for partner in PARTNERS
        if gate != "oracle" or partner == "database"  # The others do not know where facts begin.
    ]
    groups = {
        kind: [Prompt(re.sub(r"\s*\(.*\)$", "", d.title), d.title) for d in documents]
        for kind, documents in people.items()
    }
    return gate_study(
        settings, runs, partners, groups, _knowledge(workdir, people), workdir,
        reference=("lacy", "call_margin"), budget=BUDGET,
    )  # fmt: skip


def _wiki(name: str) -> pathlib.Path:
    return pathlib.Path(os.environ.get("LACY_DATA", "../shared/data")) / "wiki" / f"{name}.jsonl.xz"


@functools.cache
def _records(name: str) -> list[dict[str, Any]]:
    """Articles of one file; the titles of featured ones are URL-encoded there."""
    with lzma.open(_wiki(name), "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return [{**one, "title": urllib.parse.unquote(one["title"]).replace("_", " ")} for one in records]


def _read(name: str, max_chars: int = 0) -> list[Document]:
    return [
        Document(d["title"], opening(d["text"], max_chars) if max_chars else d["text"], d["title"])
        for d in _records(name)
    ]


def _facts() -> Iterator[tuple[str, str, str]]:
    """(entity, attribute, value): of infoboxes, then life dates as openings state them."""
    for entity, attribute, value in itertools.chain(_infobox_values(), _life_dates()):
        if plain := _plain(value):
            yield entity, attribute, plain


def _infobox_values() -> Iterator[tuple[str, str, str]]:
    for record in _records("featured_bios"):
        for attribute in ATTRIBUTES:
            yield record["title"], attribute, record["infobox"].get(attribute, "")


def _life_dates() -> Iterator[tuple[str, str, str]]:
    for document in itertools.chain(_read("bios_train", MAX_CHARS), _read("bios_unseen", MAX_CHARS)):
        if life := _LIFE.search(document.text):
            yield document.title, "birth_date", life[1]
            yield document.title, "death_date", life[2]
        elif born := _BORN.search(document.text):
            yield document.title, "birth_date", born[1]


def _plain(value: str) -> str:
    """The first of several values, as a text would state it: "1876-10-3; Omaha" gives "3 October 1876"."""
    value = re.sub(r"\s*\([^()]*\)\s*$", "", value.split(";")[0]).strip().removeprefix("on ")
    if date := re.fullmatch(r"(\d{4})-(\d{1,2})-(\d{1,2})", value):
        year, month, day = map(int, date.groups())
        if 1 <= month <= 12:
            return f"{day} {calendar.month_name[month]} {year}"
    return value


def _knowledge(workdir: pathlib.Path, people: dict[str, list[Document]]) -> KnowledgeSource:
    path = workdir / "knowledge.db"
    if path.exists():
        return KnowledgeSource(path)
    return KnowledgeSource.build(path, itertools.chain(*people.values()))


if __name__ == "__main__":
    sys.exit(main())
