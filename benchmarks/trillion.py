"""What it costs to label a trillion tokens and to train on them, on paper: the table "A trillion tokens" of docs/tpu.md.

    python benchmarks/trillion.py

Nothing is measured here. Rates are those that other benchmarks measured on two cores of an AMD EPYC: labelling from
docs/results/label.txt, reading from a bucket by `python benchmarks/input.py --bucket --quick` (docs/data.md), bytes a token of
Wikipedia biographies of 515 tokens as `lacy prepare --config=experiments/wiki_bios.py` writes them. FLOPs are those that
`lacy plan` counts. Prices are list prices, which change.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

from lacy_jax.config import load_config
from lacy_jax.models import flops_per_token, resolve_model_config
from lacy_jax.planning.slices import TPUS, parse_topology

_ROOT = pathlib.Path(__file__).resolve().parents[1]
TOKENS = 1e12
TOKENS_PER_DOCUMENT = 1000  # An assumption: pages of the web.
BYTES_PER_TOKEN = 2.9
SHARD_BYTES = 1e9  # An assumption; `dataset.shards` sets it.
RECORDS_PER_S = 32 / 0.03  # A host asks for 32 records at a time, and a bucket answers after 30 ms.
COPIED_TOKENS_PER_S = 2.5e6
MFU = 0.4  # An assumption.
CHIP_HOUR = 1.20  # USD: v5e on demand, us-west4.
CORE_HOUR = 0.04  # USD: an assumption.
GB_MONTH, CLASS_A, CLASS_B = 0.020, 0.005 / 1000, 0.0004 / 1000  # cloud.google.com/storage/pricing-examples
OBJECTS_PER_CHECKPOINT = 200  # An assumption, of the order of hosts x arrays.
SIDE_WRITES_PER_HOUR = 4 * 120


def labelling_rates() -> dict[str, float]:
    """Tokens a second and core by labeller, of the first run in docs/results/label.txt."""
    text = (_ROOT / "docs" / "results" / "label.txt").read_text()
    line = next(line for line in text.splitlines() if line.startswith('{"benchmark"'))
    return {name: row["tokens_per_s_per_core"] for name, row in json.loads(line)["labellers"].items()}


def _rows() -> Iterator[tuple[str, str, str]]:
    for name, rate in labelling_rates().items():
        hours = TOKENS / rate / 3600
        yield f"labels, `{name}`", f"{rate:,.0f} tokens/s a core: {hours:,.0f} core-hours, {hours / 256:,.1f} h on 256 cores", _usd(hours * CORE_HOUR)  # fmt: skip
    size, documents = TOKENS * BYTES_PER_TOKEN, TOKENS / TOKENS_PER_DOCUMENT
    shards = size / SHARD_BYTES
    yield (
        "dataset in the bucket",
        f"{size / 1e12:.1f} TB in {shards:,.0f} shards of 1 GB",
        f"{_usd(size / 1e9 * GB_MONTH)} a month",
    )
    yield "writing it", f"{shards:,.0f} uploads (class A)", _usd(shards * CLASS_A)
    yield "reading it by record", f"{documents:,.0f} requests (class B) an epoch", _usd(documents * CLASS_B)
    place = parse_topology("v5e-256")
    for model in ("334m", "1b3"):
        config = load_config(str(_ROOT / "experiments" / f"paper_{model}.py"), [])
        dimensions = resolve_model_config(config.model, config.tokenizer.vocab_size, config.input.seq_len)
        flops = flops_per_token(dimensions, config.input.seq_len)
        per_chip = MFU * TPUS["v5e"].peak_flops / flops
        hours, host = TOKENS / per_chip / 3600, per_chip * place.machine.chips
        yield f"training, {model}", f"{flops / 1e9:.2f} GFLOP a token at {100 * MFU:.0f} % MFU: {per_chip:,.0f} tokens/s a chip, {hours:,.0f} v5e chip-hours, {hours / place.chips / 24:,.1f} days on a v5e-256", _usd(hours * CHIP_HOUR)  # fmt: skip
        records = host / TOKENS_PER_DOCUMENT
        yield f"its readers, {model}", f"a host of {place.machine.chips} chips eats {host:,.0f} tokens/s, {records:,.0f} records/s of {RECORDS_PER_S:,.0f} ({100 * host / COPIED_TOKENS_PER_S:.0f} % of what copied shards give)", ""  # fmt: skip
        wall = hours / place.chips
        writes = wall * (SIDE_WRITES_PER_HOUR + OBJECTS_PER_CHECKPOINT)
        yield (
            f"its files, {model}",
            f"{writes:,.0f} writes (class A) with a checkpoint an hour",
            _usd(writes * CLASS_A),
        )


def _usd(amount: float) -> str:
    return f"{amount:,.0f} USD" if amount >= 1 else "under 1 USD"


def table() -> str:
    """Markdown."""
    return "\n".join(
        ("| what | how much | list price |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in _rows()))
    )


if __name__ == "__main__":
    print(table())
