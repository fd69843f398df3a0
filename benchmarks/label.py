"""How fast is labelling, end to end: read, label, align, write?

    python benchmarks/label.py [--quick] [--json] [--data FOLDER] [--labeller NAME ...] [--processes N]
                               [--spacy-model NAME] [--parser PYTHON PIPELINE]

Builds datasets from Wikipedia text of FOLDER (or $LACY_DATA, or ../shared/data, if there; else the embedded world)
with one process, then with N at once, each with a share of its own. A process first labels a little, so that
imports and the loading of a pipeline are not counted. A full pipeline is measured too, where there is one: `spacy` is an
installed one; with --parser, one that only the spaCy of another environment loads parses the same texts there
(benchmarks/parse_texts.py), and its CPU seconds are added to those of the rules and the rest here. The last line is one JSON object with these keys:

  benchmark              "label"
  tokens_per_s_per_core  SentencePiece tokens per CPU second of one process, all its threads counted, with the
                         first labeller (default: bundled); on a quiet machine this is tokens per second
  over_paper             that over the paper's 1,827 tokens/s/core (152 core-hours per 1B, arXiv:2602.12005)
  hours_per_1b_tokens    core-hours per 1B tokens
  tokens_per_s           the same by the clock on the wall: lower, if the machine has other work
  processes, scaling     tokens per CPU second of N processes at once over that of one (1.0 = linear)
  scaling_wall           tokens/s of N processes together over N times that of one, by the clock: says something
                         only on a machine that has N cores to itself
  memory_growth_mb       growth of the peak memory of the measuring process over its second half
  labellers              by name: tokens_per_s_per_core, tokens_per_s, over_paper
  tokens, corpus, load   tokens of one build; where the text came from; load average before the start
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any, ClassVar

import ml_collections

from lacy_jax import config as config_lib
from lacy_jax.config import get_default_config
from lacy_jax.corpus import Document, open_corpus
from lacy_jax.dataset import build_dataset
from lacy_jax.errors import LacyError
from lacy_jax.json_lines import objects, split_lines
from lacy_jax.labels import Labels, label_parse
from lacy_jax.labels.parse import Parse, parse_of_record
from lacy_jax.labels.registry import is_installed
from lacy_jax.labels.spacy_rules import load_pipeline

PAPER = 1e9 / (152 * 3600)
TEXT = "wiki/general_train.jsonl.xz"
USUAL = "en_core_web_sm"
"""The pipeline that is looked for unasked."""
TOKENIZER = "tokenizers/sentencepiece_cc_all.32000.100extra.model"


def make_config(data: pathlib.Path | None, documents: int) -> ml_collections.ConfigDict:
    """Config of one build, without its folder and labeller."""
    config = get_default_config()
    config.dataset.shards = 2  # The second half tells whether memory grows.
    config.corpus.max_documents = documents
    if data is not None:
        config.corpus.kind, config.corpus.path = "jsonl", str(data / TEXT)
        config.tokenizer.path = str(data / TOKENIZER)
    else:
        config.corpus.people, config.tokenizer.vocab_size = documents // 2, 1000
    return config


class StoredParses:
    """The full rules on parses made elsewhere, by text: a labeller, named to the build as `__main__:StoredParses`."""

    name = "full"
    version = "stored parses"
    parses: ClassVar[dict[str, Parse]] = {}

    def label(self, document: Document) -> Labels:
        """Labels of a text that was parsed."""
        return label_parse(self.parses[document.text], document.title)


def parse_elsewhere(config: ml_collections.ConfigDict, python: str, model: str) -> tuple[str, dict[str, Any]]:
    """(parses as JSONL, what the parser says of itself) of the texts of a config, by a pipeline that another Python runs.

    Raises:
      LacyError: it cannot parse; with the last line it printed.
    """
    texts = "".join(json.dumps({"text": d.text, "title": d.title}) + "\n" for d in open_corpus(config.corpus))
    command = [python, str(pathlib.Path(__file__).parent / "parse_texts.py"), model]
    done = subprocess.run(command, input=texts, capture_output=True, text=True)
    if done.returncode:
        raise LacyError(f"--parser {python} {model}: {(done.stderr.splitlines() or ['failed'])[-1]}")
    return done.stdout, json.loads(done.stderr.splitlines()[-1])


def measure_parsed(
    config: ml_collections.ConfigDict, parses: str, parser: dict[str, Any], folder: str
) -> dict[str, Any]:
    """As `measure`, with what `parse_elsewhere` found: the seconds of the parser and those of the build here."""
    records = [record for _, record in objects(split_lines(parses), "parses")]
    StoredParses.parses = {record["text"]: parse_of_record(record) for record in records}
    config.labels.labeller = "__main__:StoredParses"
    result = measure(config_lib.to_json(config), folder)
    seconds = parser["cpu_seconds"]
    return {**result, "cpu": result["cpu"] + seconds, "wall": result["wall"] + seconds, **parser}


def measure(config_json: str, folder: str, ready: Any = None) -> dict[str, float]:
    """Tokens, seconds and CPU seconds of one build in this process, after a small one that warms up.

    Args:
      ready: a barrier to wait at before the clock starts; None alone.
    """
    config = config_lib.from_json(config_json)
    warm = config.copy_and_resolve_references()
    warm.corpus.max_documents = 40
    build_dataset(warm, os.path.join(folder, "warm"))
    if not config.tokenizer.path:
        config.tokenizer.path = os.path.join(folder, "warm", "tokenizer.model")
    if ready is not None:
        ready.wait()
    wall, cpu = time.perf_counter(), time.process_time()
    metadata = build_dataset(config, os.path.join(folder, "dataset"))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    build_dataset(config, os.path.join(folder, "again"))
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"tokens": metadata.tokens, "wall": wall, "cpu": cpu, "growth_mb": growth}


def _process(config_json: str, folder: str, ready: Any, results: Any) -> None:
    results.put(measure(config_json, folder, ready))


def measure_processes(config_json: str, count: int, folder: str) -> list[dict[str, float]]:
    """Measurements of `count` processes at once, each with a build of its own."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(count), context.Queue()
    processes = [
        context.Process(
            target=_process, args=(config_json, os.path.join(folder, f"process{i}"), ready, results)
        )
        for i in range(count)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=3600) for _ in processes]
    for process in processes:
        process.join()
    return found


def scaling(one: dict[str, float], many: list[dict[str, float]]) -> dict[str, float]:
    """How much of the speed of one process each of several keeps, by CPU time and by the clock."""
    return {
        name: round(sum(m["tokens"] / m[clock] for m in many) / len(many) * one[clock] / one["tokens"], 2)
        for name, clock in (("scaling", "cpu"), ("scaling_wall", "wall"))
    }


def rates(result: dict[str, float]) -> dict[str, float]:
    """Tokens per second of a measurement, by CPU time and by the clock, and the ratio to the paper."""
    per_core = result["tokens"] / result["cpu"]
    return {
        "tokens_per_s_per_core": round(per_core),
        "tokens_per_s": round(result["tokens"] / result["wall"]),
        "over_paper": round(per_core / PAPER, 1),
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The figures; see the module's docstring."""
    data = find_data(args.data)
    load = os.getloadavg()[0]
    names = args.labeller or ["bundled", "rules"]
    if not args.labeller and (args.spacy_model != USUAL or is_installed(USUAL)):
        names.append("spacy")
        if not is_installed(args.spacy_model):
            load_pipeline(args.spacy_model)  # Says what is wrong before minutes of measurements.
    parses = []
    if args.parser:
        short = make_config(data, 40 if args.quick else 300)
        parses = [short, *parse_elsewhere(short, *args.parser)]
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            config = make_config(data, 200 if args.quick else 1500)
            config.labels.labeller, config.labels.spacy_model = name, args.spacy_model
            result = measure(config_lib.to_json(config), os.path.join(folder, name.replace("/", "_")))
            figures[name] = rates(result)
            if name == names[0]:
                first, text = result, config_lib.to_json(config)
        if parses:
            result = measure_parsed(*parses, os.path.join(folder, "full"))
            figures[f"{result['pipeline']} (spaCy {result['spacy']})"] = rates(result)
        together = measure_processes(text, args.processes, folder) if args.processes > 1 else [first]
    main_figures = figures[names[0]]
    return {
        "benchmark": "label",
        **main_figures,
        "hours_per_1b_tokens": round(1e9 / main_figures["tokens_per_s_per_core"] / 3600, 2),
        "processes": args.processes,
        **scaling(first, together),
        "memory_growth_mb": round(first["growth_mb"], 1),
        "labeller": names[0],
        "labellers": figures,
        "tokens": first["tokens"],
        "corpus": "wikipedia" if data is not None else "world",
        "load": round(load, 2),
    }


def find_data(argument: str) -> pathlib.Path | None:
    """The data folder, by argument or $LACY_DATA or beside the repository, if it has what is needed; else None."""
    folder = pathlib.Path(argument or os.environ.get("LACY_DATA", "../shared/data"))
    usable = (folder / TEXT).is_file() and (folder / TOKENIZER).is_file()
    if argument and not usable:
        raise LacyError(f"--data {argument}: expected {TEXT} and {TOKENIZER} there")
    return folder if usable else None


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="half a minute: 200 documents a build")
    parser.add_argument("--json", action="store_true", help="only the JSON line on standard output")
    parser.add_argument("--data", default="", help="folder of real text")
    parser.add_argument("--labeller", action="append", help="as labels.labeller; may be repeated")
    parser.add_argument(
        "--spacy-model", default=USUAL, help="measured too; the default only where it is installed"
    )
    parser.add_argument(
        "--parser",
        nargs=2,
        metavar=("PYTHON", "PIPELINE"),
        help="an interpreter whose spaCy loads the pipeline",
    )
    parser.add_argument("--processes", type=int, default=2, help="for the scaling figure; 1 leaves it out")
    args = parser.parse_args()
    try:
        result = run(args)
    except LacyError as error:
        print(f"benchmarks/label.py: {error}", file=sys.stderr)
        return 2
    if not args.json:
        print(f"{'labeller':>34}  tokens/s/core  over the paper  hours per 1B tokens")
        for name, figures in result["labellers"].items():
            rate = figures["tokens_per_s_per_core"]
            print(f"{name:>34}  {rate:13,}  {figures['over_paper']:14}  {1e9 / rate / 3600:19.2f}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
