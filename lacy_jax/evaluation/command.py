"""The verbs `generate`, `evaluate` and `inspect` of the command line."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

from lacy_jax import config as config_lib
from lacy_jax import files
from lacy_jax.command_line import Verb, add_step, run_config_of, show, workdir_of
from lacy_jax.evaluation.index_command import add_index, add_synthesise
from lacy_jax.export.command import inspect_export
from lacy_jax.run_files import TOKENIZER_FILE


def add_verbs(verb: Callable[..., Verb]) -> None:
    """Register the verbs; `verb(name, run, about, groups)` makes a sub-parser with the options all verbs share."""
    generate = verb("generate", _generate, "write texts with a trained model and a partner", ("generate",))
    generate.add_argument("--out", metavar="FILE.jsonl", help="default: WORKDIR/samples/GATE-BUDGET.jsonl")
    add_step(generate)
    generate.add_argument("--prompt", action="append", default=[], help="a prompt; may be repeated")
    evaluate = verb("evaluate", _evaluate, "what a trained model, or its texts, are worth", ("--suite",))
    evaluate.add_argument("--suite", default="calls", metavar="NAME", help="see below (default calls)")
    evaluate.late = _add_suite_options
    add_step(evaluate)
    add_index(verb)
    add_synthesise(verb)
    inspect = verb("inspect", _inspect, "show documents with their factual tokens marked")
    inspect.add_argument("--limit", type=int, default=3, help="most documents (default 3)")
    inspect.add_argument("--out", metavar="FILE.html", help="write HTML instead of terminal text")
    add_step(inspect)
    inspect.add_argument("--against", default="", metavar="LABELLER", help="a second labeller, side by side")
    inspect.add_argument(
        "--scores", action="store_true", help="with --workdir=RUN: its loss and p(CALL) per token"
    )


def _add_suite_options(evaluate: argparse.ArgumentParser) -> None:
    from lacy_jax.evaluation.suites import all_options

    for option, readers in all_options().items():
        evaluate.add_argument(
            option.flag,
            type=type(option.default),
            default=argparse.SUPPRESS,
            help=f"{option.about} ({', '.join(readers)})",
        )


def _generate(options: argparse.Namespace) -> None:
    from lacy_jax.cascade import Prompt, budget_summary
    from lacy_jax.evaluation.run_texts import generate_texts, make_partner, make_prompts
    from lacy_jax.training import load_run

    config = run_config_of(options)
    run = load_run(workdir_of(options), config.generate.step)
    given = [Prompt(text, f"prompt-{i}") for i, text in enumerate(options.prompt)]
    prompts = given or make_prompts(run, config)
    partner = make_partner(config)
    started = time.monotonic()
    with contextlib.closing(partner) if partner else contextlib.nullcontext():
        written = generate_texts(run, config, prompts, partner, out=options.out)
    seconds = time.monotonic() - started
    texts, path, meter = written.texts, written.path, written.meter
    shown = "\n\n".join(f"{_marked(text)}" for text in texts[:3])
    result = {
        "path": str(path),
        "texts": len(texts),
        "gate": texts[0].gate,
        "budget": texts[0].budget,
        "tokens": sum(len(text.tokens) for text in texts),
        "calls": sum(text.calls for text in texts),
        "partner_tokens": sum(text.origins.count("partner") for text in texts),
        "budget_met": sum(text.budget_met for text in texts),
        "seconds": seconds,
        "partner_exchanges": meter.exchanges,
        "partner_seconds": meter.seconds,
        "partner_tokens_processed": meter.tokens,
    }
    took = f"{seconds:.1f} s" + (f", {written.before} of them kept from before" if written.before else "")
    if partner:
        took += f"; {meter.seconds:.1f} s in {meter.exchanges} exchanges with the partner"
    show(options, result, f"{shown}\n\n{budget_summary(texts)}\n{len(texts)} texts in {path} ({took})")


def _marked(text: Any) -> str:
    """The text, with the partner's words in [[brackets]]."""
    parts = [f"[[{text.text[a:b]}]]" if who == "partner" else text.text[a:b] for a, b, who in text.spans]
    return text.prompt + "".join(parts)


def _evaluate(options: argparse.Namespace) -> None:
    from lacy_jax.evaluation.suites import all_options, run_suite

    config = run_config_of(options) if options.config or options.workdir else None
    given = {o.name: getattr(options, o.name) for o in all_options() if hasattr(options, o.name)}
    figures, text = run_suite(options.suite, given, options.workdir and workdir_of(options), config)
    show(options, figures, text)


def _inspect(options: argparse.Namespace) -> None:
    if exported := inspect_export(options.workdir):
        show(options, *exported)
        return
    from lacy_jax.labels.inspect import inspect_documents, render_html, render_terminal
    from lacy_jax.tokenizer import Tokenizer

    if options.scores:  # otherwise neither a model nor JAX is needed
        from lacy_jax.evaluation.inspection import add_scores
        from lacy_jax.training import load_run

    config = run_config_of(options)
    prepared = config_lib.dataset_folder(config, options.workdir or ".") / TOKENIZER_FILE
    path = config.tokenizer.path or (str(prepared) if prepared.exists() else "")
    run = load_run(workdir_of(options), config.generate.step) if options.scores else None
    tokenizer = run.tokenizer if run else Tokenizer.load(path) if path else None
    shown = inspect_documents(config, options.limit, tokenizer, options.against)
    if run:
        shown = add_scores(shown, run)
    if options.out:
        files.write_text(options.out, render_html(shown))
    result = {"documents": [document.to_dict() for document in shown], "path": options.out}
    show(options, result, options.out or render_terminal(shown, color=sys.stdout.isatty()))
