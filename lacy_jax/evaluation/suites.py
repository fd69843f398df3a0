"""`lacy evaluate --suite=...`: FActScore, leakage, language understanding, cost, acceptability, the judge's examination.

Each suite returns its figures (JSON-safe, kept as WORKDIR/evaluation_SUITE.json, which `lacy report` shows) and
their text. Suites that only read files (`judge`, and `factscore` of given texts) need no run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
from etils import epath

from lacy_jax import files
from lacy_jax.cascade import Generation, Prompt, generate, get_partner, read_generations
from lacy_jax.cascade.passages import read_documents
from lacy_jax.clients import ChatClient, PriceGuard
from lacy_jax.config import dataset_folder
from lacy_jax.corpus import World, world_of
from lacy_jax.dataset import open_split
from lacy_jax.errors import ConfigError
from lacy_jax.evaluation import acceptability, cost, factscore, leakage, leakage_questions
from lacy_jax.evaluation.factscore import formats, pipeline
from lacy_jax.evaluation.factscore.splitting import normal_topic
from lacy_jax.evaluation.kept import Kept
from lacy_jax.evaluation.run_texts import generate_texts, make_partner, make_prompts
from lacy_jax.evaluation.world_facts import score_world
from lacy_jax.run_files import ACCEPTABILITY_CACHE_FOLDER, FACTSCORE_FOLDER, suite_file
from lacy_jax.training.run import Run, load_run

POPQA_FILE = "popqa_1000_with_wikipedia_paragraphs.json"
TREX_FILE = "lama_trex.tar.xz"
LABELLED_FOLDER = "factscore_labeled"
TREX_PER_RELATION = 50


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line gives; "" and 0 = not given.

    Attributes:
      data: folder of test sets (leakage: factual/, nlu: nlu/, judge: factual/).
      knowledge: database or JSONL corpus with titles. texts: JSONL of generations or in FActScore's format.
      entities: file of entities to write about. judge, splitter: see `factscore.get_judge`.
      demonstrations: published ones, for a prompted splitter. seen: JSONL corpus the model was trained on.
      tasks: comma-separated, for nlu. limit: most items (people, questions per relation, items per task, documents).
      prices, max_cost: of a served judge and splitter, see `PriceGuard`. max_tokens: their longest answer; 0 = usual.
    """

    data: str = ""
    knowledge: str = ""
    texts: str = ""
    entities: str = ""
    judge: str = pipeline.EMBEDDED
    splitter: str = pipeline.EMBEDDED
    demonstrations: str = ""
    seen: str = ""
    tasks: str = ""
    prices: str = ""
    max_cost: float = 0.0
    max_tokens: int = 0
    limit: int = 0

    def guard(self) -> PriceGuard:
        """What asking servers may cost."""
        return PriceGuard(self.prices, self.max_cost)

    def need(self, name: str, why: str) -> str:
        """A field that has to be given.

        Raises:
          ConfigError: it is not.
        """
        value = getattr(self, name)
        if not value:
            raise ConfigError(f"--{name} is needed: {why}")
        return str(value)


def run_suite(
    suite: str, options: Options, workdir: epath.PathLike | None, config: ml_collections.ConfigDict | None
) -> tuple[dict[str, Any], str]:
    """Run one suite.

    Args:
      workdir: run directory; None for a suite that needs no model. config: of the run.

    Raises:
      ConfigError: an unknown suite, or a missing option. Others as the suites.
    """
    suites: dict[str, Callable[..., tuple[dict[str, Any], str]]] = {
        "factscore": _factscore,
        "leakage": _leakage,
        "nlu": _nlu,
        "cost": _cost,
        "judge": _judge,
        "acceptability": _acceptability,
    }
    if suite not in suites:
        raise ConfigError(f"--suite={suite}: expected one of calls, {', '.join(suites)}")
    result, text = suites[suite](options, workdir, config)
    if workdir:
        files.write_json(epath.Path(workdir) / suite_file(suite), result)
    return result, text


def _open(
    workdir: epath.PathLike | None, config: ml_collections.ConfigDict | None
) -> tuple[Run, ml_collections.ConfigDict]:
    if not workdir or config is None:
        raise ConfigError("--workdir=DIR is needed: the run that is to be evaluated")
    return load_run(workdir, config.generate.step), config


def _factscore(
    options: Options, workdir: epath.PathLike | None, config: ml_collections.ConfigDict | None
) -> tuple[dict[str, Any], str]:
    if options.texts:
        entries = _given_texts(options.texts)
        folder = epath.Path(workdir) if workdir else epath.Path(options.texts).parent
        out = folder / FACTSCORE_FOLDER / f"{epath.Path(options.texts).name.removesuffix('.jsonl')}.jsonl"
    else:
        run, config = _open(workdir, config)
        entries, name = _write_about(run, config, options)
        out = run.workdir / FACTSCORE_FOLDER / f"{name}.jsonl"
    entries = entries[: options.limit or None]
    knowledge = pipeline.open_knowledge(
        options.need("knowledge", "a JSONL corpus with titles, or a database"), out.parent
    )
    splitter, judge = _served(options)
    figures = factscore.run_factscore(
        entries,
        knowledge,
        out=out,
        splitter=splitter,
        judge=judge,
        given_facts=options.splitter == pipeline.GIVEN,
        # Topics that were named must be titles, as in the original; our own prompts leave parentheses out.
        exact_titles=bool(options.entities) or not _ours(entries),
    )
    figures["texts_file"] = str(out)
    figures["by_topic"] = _by_topic(out)
    return figures, f"{factscore.score_line(figures)}\n{formats.output_path(out)}"


def _served(options: Options) -> tuple[factscore.Splitter, factscore.Judge]:
    """Splitter and judge, under one guard."""
    guard = options.guard()
    return (
        factscore.get_splitter(options.splitter, options.demonstrations, guard, options.max_tokens),
        factscore.get_judge(options.judge, guard, options.max_tokens),
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


def _write_about(
    run: Run, config: ml_collections.ConfigDict, options: Options
) -> tuple[list[formats.Entry], str]:
    """Texts of the run about the entities given, or its own prompts; and a name for them."""
    partner = make_partner(config)
    if options.entities:
        names = formats.read_entities(options.entities)[: options.limit or None]
        prompts = [Prompt(normal_topic(name), name) for name in names]
    else:
        prompts = make_prompts(run, config)[: options.limit or None]
    written = generate_texts(run, config, prompts, partner)
    entries = pipeline.entries_of_generations(written.texts)
    if options.entities:
        entries = [dataclasses.replace(e, topic=p.id) for e, p in zip(entries, prompts, strict=True)]
    return entries, written.path.name.removesuffix(".jsonl")


def _leakage(
    options: Options, workdir: epath.PathLike | None, config: ml_collections.ConfigDict | None
) -> tuple[dict[str, Any], str]:
    run, config = _open(workdir, config)
    data = epath.Path(options.need("data", f"the folder with {POPQA_FILE} and {TREX_FILE}"))
    questions = leakage_questions.read_popqa(data / POPQA_FILE)
    questions = questions[: options.limit or None]
    questions += leakage_questions.read_trex(data / TREX_FILE, options.limit or TREX_PER_RELATION)
    seen = None
    if options.seen:
        titles = (document.title for document in read_documents(options.seen, "--seen"))
        seen = leakage_questions.seen_subjects(questions, titles)

    def write(prompts: Sequence[Prompt], tokens: int) -> list[Generation]:
        size = config.generate.batch_size
        return generate(run.model, run.tokenizer, prompts, max_new_tokens=tokens, batch_size=size)

    answers = leakage.ask(questions, write, out=run.workdir / "leakage", about=[run.step])
    result = {
        "policy": run.config.objective.policy,
        "step": run.step,
        "seen_corpus": options.seen,
        **leakage.summarise(questions, answers, seen),
    }
    return result, leakage.leakage_table(result)


def _nlu(
    options: Options, workdir: epath.PathLike | None, config: ml_collections.ConfigDict | None
) -> tuple[dict[str, Any], str]:
    from lacy_jax.evaluation.harness_tasks import TASKS
    from lacy_jax.evaluation.nlu import nlu_table, run_nlu

    run, config = _open(workdir, config)
    result = run_nlu(
        run.model,
        run.tokenizer,
        options.need("data", "the folder of the test sets (ARC-Easy_test.json, blimp.tar.xz and so on)"),
        run.workdir / "nlu_tasks",
        kept=Kept(run.workdir / "nlu"),
        about=[run.step],
        tasks=tuple(options.tasks.split(",")) if options.tasks else TASKS,
        limit=options.limit,
        batch_size=config.generate.batch_size,
    )
    return result, nlu_table(result)


def _cost(
    options: Options, workdir: epath.PathLike | None, config: ml_collections.ConfigDict | None
) -> tuple[dict[str, Any], str]:
    run, config = _open(workdir, config)
    kind, _, where = config.generate.partner.partition(":")
    partner_run = load_run(where) if kind == "checkpoint" else None
    if partner_run is None:
        partner = make_partner(config)
    else:
        partner = get_partner(
            config.generate.partner,
            reach=config.generate.partner_reach,
            load_run=lambda _: partner_run,
            rows=config.generate.batch_size,
        )
    if partner is None:
        raise ConfigError(
            "config.generate.partner = 'none': the curve of quality against cost needs a partner"
        )
    prompts = make_prompts(run, config)[: options.limit or None]
    judge = _world_judge(world) if (world := world_of(config.corpus)) else _text_judge(run, options)
    result = cost.cost_curve(
        run,
        config,
        prompts,
        partner,
        judge,
        partner_run=partner_run,
        kept=Kept(run.workdir / "cost"),
        about=[options.judge, options.splitter, options.knowledge],
    )
    return result, cost.cost_table(result)


def _world_judge(world: World) -> cost.Judge:
    def judge(texts: Sequence[Generation], name: str) -> dict[str, Any]:
        figures = score_world(texts, world)
        return {
            "judge": "the world's table",
            "quality": figures["true_fact_share"],
            "quality_ci": figures["true_fact_share_ci"],
            "facts_per_text": figures["stated_facts_per_text"],
        }

    return judge


def _text_judge(run: Run, options: Options) -> cost.Judge:
    folder = run.workdir / FACTSCORE_FOLDER
    knowledge = pipeline.open_knowledge(
        options.need("knowledge", "what the texts are judged against, a JSONL corpus with titles"), folder
    )
    splitter, decider = _served(options)

    def judge(texts: Sequence[Generation], name: str) -> dict[str, Any]:
        figures = factscore.run_factscore(
            pipeline.entries_of_generations(texts),
            knowledge,
            out=folder / f"cost-{name}.jsonl",
            splitter=splitter,
            judge=decider,
        )
        return {
            "judge": figures["judge"],
            "quality": figures["init_score"],
            "quality_ci": figures["init_score_ci"],
            "facts_per_text": figures["facts_per_text"],
        }

    return judge


def _judge(
    options: Options, workdir: epath.PathLike | None, config: ml_collections.ConfigDict | None
) -> tuple[dict[str, Any], str]:
    data = epath.Path(options.need("data", f"the folder that has {LABELLED_FOLDER}/"))
    labelled = sorted((data / LABELLED_FOLDER).glob("*.jsonl"), key=str)
    if not labelled:
        raise ConfigError(f"--data={data}: no {LABELLED_FOLDER}/*.jsonl in it")
    given = options.need("knowledge", "a JSONL corpus with titles, or a database")
    systems = {path.name.removesuffix(".jsonl"): formats.read_entries(path) for path in labelled}
    with contextlib.ExitStack() as stack:
        # Without a run nothing is left behind: the database made of a corpus is gone with the answer.
        folder = (
            epath.Path(workdir) / FACTSCORE_FOLDER
            if workdir
            else epath.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        )
        knowledge = pipeline.open_knowledge(given, folder)
        stack.callback(knowledge.close)
        judge = factscore.get_judge(options.judge, options.guard(), options.max_tokens)
        result = factscore.agreement(systems, judge, knowledge)
    return result, factscore.agreement_table(result)


def _acceptability(
    options: Options, workdir: epath.PathLike | None, config: ml_collections.ConfigDict | None
) -> tuple[dict[str, Any], str]:
    guard = options.guard()
    run, config = _open(workdir, config)
    cache = run.workdir / ACCEPTABILITY_CACHE_FOLDER
    client = ChatClient(options.judge, cache, key=None, guard=guard, max_tokens=options.max_tokens)
    source = open_split(dataset_folder(config, run.workdir), "valid")
    figures = acceptability.run_acceptability(run, source, client, guard=guard, limit=options.limit)
    result = {"judge": client.model, **figures}
    return result, acceptability.acceptability_table(result)
