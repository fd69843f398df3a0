"""Is the input ever what training waits for? Build speed, pipeline speed, and the step that consumes it.

    python benchmarks/input.py [--quick] [--json] [--data FOLDER] [--bucket]

Builds a dataset (Wikipedia biographies of FOLDER, $LACY_DATA or ../shared/data if there, else the embedded world), reads it
through the input pipeline with nothing behind it, and runs training steps of the 30m model on its batches.
With --bucket the dataset is also read from a storage server on this machine that answers each request after --latency-ms,
once record by record and once with its shards copied to this host.
The last line is one JSON object with these keys:

  benchmark           "input"
  pipeline_over_step  pipeline tokens/s over the step's tokens/s; target at least 20
  build_tokens_per_s  tokens labelled, tokenised and written per second, by all workers together
  build_workers       processes that built
  build_seconds       seconds of that build
  pipeline_tokens_per_s, step_tokens_per_s   the two rates that make the ratio
  bucket_tokens_per_s, bucket_copied_tokens_per_s
                      --bucket: of the pipeline, by record and from copied shards
  bucket_over_step    --bucket: by record, over the step's tokens/s
  bucket_requests, bucket_first_batch_s, bucket_copying_s, bucket_latency_ms
                      --bucket: while reading by record; until the first batch; to copy all shards
  seq_len, batch_size of both; step_parameters; factual_rate, labeller, corpus, device
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

import jax
import ml_collections

from lacy_jax.config import changed, get_default_config
from lacy_jax.dataset import Batch, Metadata, build_dataset, make_input
from lacy_jax.errors import LacyError
from lacy_jax.models import count_params, resolve_model_config
from lacy_jax.run_files import DATASET_FOLDER, TOKENIZER_FILE
from lacy_jax.training import sharding
from lacy_jax.training.optimizer import make_optimizer
from lacy_jax.training.state import ModelDefinition, init_state, state_shardings
from lacy_jax.training.step import make_train_step

BIOGRAPHIES = "wiki/bios_train.jsonl.xz"
TOKENIZERS = "tokenizers"


def make_config(data: pathlib.Path | None, folder: pathlib.Path, quick: bool) -> ml_collections.ConfigDict:
    """Config of the benchmark: real text if there is some, the paper's context of 1,024, the 30m preset."""
    config = get_default_config()
    config.dataset.path = str(folder / DATASET_FOLDER)
    config.dataset.workers = config.dataset.shards = 1 if quick else os.cpu_count() or 1
    if data is not None:
        config.corpus.kind, config.corpus.path = "jsonl", str(data / BIOGRAPHIES)
        config.corpus.max_documents = 300 if quick else 4000
        # A trained tokenizer, so that the build's time is labelling, tokenising and writing.
        config.tokenizer.path = str(next((data / TOKENIZERS).rglob("*.model")))
    else:
        config.corpus.people, config.tokenizer.vocab_size = (200, 1000) if quick else (3000, 2048)
    config.input.seq_len, config.input.batch_size = 1024, 2 if quick else 8
    config.model.preset = "30m"
    config.metrics.tensorboard = False
    return config


def measure_build(config: ml_collections.ConfigDict) -> tuple[Metadata, float]:
    """Metadata and seconds of a build with the tokenizer at hand."""
    if not config.tokenizer.path:
        warm = changed(config, {"dataset.path": f"{config.dataset.path}-tokenizer"})
        build_dataset(warm, warm.dataset.path)
        config.tokenizer.path = str(pathlib.Path(warm.dataset.path) / TOKENIZER_FILE)
    start = time.perf_counter()
    metadata = build_dataset(config, config.dataset.path)
    return metadata, time.perf_counter() - start


def measure_pipeline(config: ml_collections.ConfigDict, seconds: float) -> float:
    """Tokens per second of the pipeline alone, once the head start of its prefetch buffer is spent."""
    pipeline = make_input(config)
    for _ in range(config.input.prefetch + 2):
        next(pipeline)
    start, tokens = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        tokens += next(pipeline).tokens.size
    rate = tokens / (time.perf_counter() - start)
    pipeline.close()
    return rate


def measure_bucket(config: ml_collections.ConfigDict, seconds: float, latency_ms: float) -> dict[str, float]:
    """Figures of the pipeline on the same dataset in a bucket of a server on this machine."""
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "support"))
    import gcs_server

    folder = pathlib.Path(config.dataset.path)
    with gcs_server.GcsServer() as server:
        os.environ.update(server.environment)
        path = f"{server.make_bucket('benchmark')}/data"
        server.put_folder(folder, path)
        server.latency_s = latency_ms / 1e3
        fields = {"dataset.path": path, "dataset.cache": str(folder.parent / "cache")}
        straight = changed(config, {**fields, "dataset.cache_gb": 0.0})
        start = time.perf_counter()
        pipeline = make_input(straight)
        next(pipeline)
        first = time.perf_counter() - start
        pipeline.close()
        before = len(server.requests)
        rate = measure_pipeline(straight, seconds)
        requests = len(server.requests) - before
        copied = changed(config, fields)
        start = time.perf_counter()
        pipeline = make_input(copied)
        pipeline.sources[0].start_copying()
        pipeline.sources[0].wait_for_copies()
        copying = time.perf_counter() - start
        pipeline.close()
        copied_rate = measure_pipeline(copied, seconds)
    return {
        "bucket_tokens_per_s": round(rate),
        "bucket_copied_tokens_per_s": round(copied_rate),
        "bucket_first_batch_s": round(first, 2),
        "bucket_copying_s": round(copying, 2),
        "bucket_requests": requests,
        "bucket_latency_ms": latency_ms,
    }


def measure_step(config: ml_collections.ConfigDict, vocab_size: int, steps: int) -> tuple[float, int]:
    """Tokens per second of the lacy train step on this machine, input at hand; and the parameter count."""
    pipeline = make_input(config)
    batches: list[Batch] = [next(pipeline) for _ in range(2)]
    pipeline.close()
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    model = ModelDefinition(resolve_model_config(config.model, vocab_size, config.input.seq_len))
    tx = make_optimizer(config, model.axes)
    train_step = make_train_step(config, model, tx, mesh, state_shardings(model, tx, mesh))
    with jax.set_mesh(mesh):
        state = init_state(model, tx, mesh, config.seed)
        on_device = [sharding.put_batch(batch, mesh) for batch in batches]
        state, metrics = train_step(state, on_device[0], None)
        jax.block_until_ready(metrics)
        start = time.perf_counter()
        for step in range(steps):
            state, metrics = train_step(state, on_device[step % 2], None)
        jax.block_until_ready((state, metrics))
        elapsed = time.perf_counter() - start
    return steps * batches[0].tokens.size / elapsed, count_params(model.config)


def run(data: pathlib.Path | None, quick: bool, latency_ms: float | None = None) -> dict[str, object]:
    """The figures; see the module's docstring. With `latency_ms` those of a bucket, too."""
    bucket: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(data, pathlib.Path(folder), quick)
        metadata, build_seconds = measure_build(config)
        pipeline_rate = measure_pipeline(config, 2.0 if quick else 10.0)
        if latency_ms is not None:
            bucket = measure_bucket(config, 2.0 if quick else 10.0, latency_ms)
        step_rate, parameters = measure_step(config, metadata.vocab_size, 1 if quick else 4)
    return {
        "benchmark": "input",
        "pipeline_over_step": round(pipeline_rate / step_rate, 1),
        "build_tokens_per_s": round(metadata.tokens / build_seconds),
        "build_workers": config.dataset.workers,
        "build_seconds": round(build_seconds, 1),
        "pipeline_tokens_per_s": round(pipeline_rate),
        "step_tokens_per_s": round(step_rate, 1),
        **bucket,
        **({"bucket_over_step": round(bucket["bucket_tokens_per_s"] / step_rate, 1)} if bucket else {}),
        "seq_len": config.input.seq_len,
        "batch_size": config.input.batch_size,
        "step_parameters": parameters,
        "factual_rate": round(metadata.factual_rate, 4),
        "labeller": metadata.labeller,
        "corpus": "wikipedia biographies" if data is not None else metadata.corpus_name,
        "device": jax.devices()[0].device_kind,
    }


def find_data(argument: str) -> pathlib.Path | None:
    """The data folder, by argument or $LACY_DATA, if it has what is needed; else None."""
    folder = pathlib.Path(argument or os.environ.get("LACY_DATA", "../shared/data"))
    usable = (folder / BIOGRAPHIES).is_file() and any((folder / TOKENIZERS).rglob("*.model"))
    if argument and not usable:
        raise LacyError(
            f"--data {argument}: expected {BIOGRAPHIES} and a .model file under {TOKENIZERS}/ there"
        )
    return folder if usable else None


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="about a minute: fewer documents, one step")
    parser.add_argument("--json", action="store_true", help="only the JSON line on standard output")
    parser.add_argument(
        "--data",
        default="",
        help="folder of real text; default $LACY_DATA or ../shared/data, else the embedded world",
    )
    parser.add_argument("--bucket", action="store_true", help="read it from a bucket, too (extra test)")
    parser.add_argument("--latency-ms", type=float, default=30.0, help="of each answer of the bucket")
    args = parser.parse_args()
    try:
        figures = run(find_data(args.data), args.quick, args.latency_ms if args.bucket else None)
    except LacyError as error:
        print(f"benchmarks/input.py: {error}", file=sys.stderr)
        return 2
    if not args.json:
        for name, value in figures.items():
            print(f"{name:>24}  {value}")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
