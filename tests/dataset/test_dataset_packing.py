"""Plans and batches against a slow reference that goes token by token."""

from __future__ import annotations

import collections

import dataset_fakes as fakes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacy_jax.dataset import make_input, open_split, write_extra
from lacy_jax.dataset.packing import make_plan, permutation
from lacy_jax.dataset.records import STORED_LABELS

pytestmark = pytest.mark.oldest

PACKINGS = ("split", "whole")


def targets_of(plan, rows):
    """(document, token index) of every target that continues its document, with its number of occurrences."""
    seen = collections.Counter()
    for row in rows:
        for piece in plan.row(row):
            seen.update((piece.document, i) for i in range(piece.start + 1, piece.stop))
    return seen


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=30),
    seq_len=st.integers(1, 24),
    packing=st.sampled_from(PACKINGS),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_every_target_within_a_document_once_per_epoch(lengths, seq_len, packing, shuffle, epoch):
    plan = make_plan(np.array(lengths), seq_len, packing, shuffle, seed=5)
    n = plan.rows_per_epoch
    seen = targets_of(plan, range(epoch * n, (epoch + 1) * n))
    assert seen == {(d, i): 1 for d, length in enumerate(lengths) for i in range(1, length)}
    for row in range(n):
        pieces = plan.row(row)
        assert sum(p.stop - p.start for p in pieces) <= seq_len + 1
        assert all(0 <= p.start < p.stop <= lengths[p.document] for p in pieces)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=30), seq_len=st.integers(8, 20))
def test_whole_cuts_a_document_only_if_it_does_not_fit(lengths, seq_len):
    plan = make_plan(np.array(lengths), seq_len, "whole", True, seed=1)
    pieces = collections.Counter(p.document for r in range(plan.rows_per_epoch) for p in plan.row(r))
    for document, length in enumerate(lengths):
        assert pieces[document] == max(1, -(-(length - 1) // seq_len))


def test_split_rows_are_full_and_the_order_changes_each_epoch():
    lengths = np.array([30] * 50)
    plan = make_plan(lengths, 16, "split", True, seed=3)
    n = plan.rows_per_epoch
    assert n == -(-(1500 - 1) // 16)
    epochs = [[tuple(plan.row(e * n + r)) for r in range(n)] for e in range(2)]
    assert sorted(sum(p.stop - p.start for p in row) for row in epochs[0])[1:] == [17] * (n - 1)
    assert epochs[0] != epochs[1]
    # Pieces of a document are spread: in row order, neighbours rarely continue each other.
    follow = sum(a[-1].document == b[0].document for a, b in zip(epochs[0], epochs[0][1:]))
    assert follow < n / 4
    plain = make_plan(lengths, 16, "split", False, seed=3)
    assert [p.document for p in plain.row(0)] == [0]
    assert plain.row(1)[0] == (0, 16, 30)


def splitmix64(x):
    """Vigna's splitmix64 in plain integers; its first output for state 0 is 0xE220A8397B1DCDAF."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def test_permutation_follows_splitmix64():
    """If this has to change, raise packing.ORDER_VERSION: older checkpoints then refuse to resume."""
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    for n, seed, epoch, stream in ((1, 0, 0, 1), (8, 0, 0, 1), (1000, -7, 3, 2)):
        key = splitmix64(splitmix64(splitmix64(seed % 2**64) ^ epoch) ^ stream)
        assert permutation(n, seed, epoch, stream).tolist() == sorted(
            range(n), key=lambda i: splitmix64(i ^ key)
        )
    assert permutation(8, 0, 1, 1).tolist() != permutation(8, 0, 0, 1).tolist()
    assert permutation(8, 1, 0, 1).tolist() != permutation(8, 0, 0, 1).tolist()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    records = fakes.make_records(30, seed=1)
    path = fakes.write_dataset(
        tmp_path_factory.mktemp("data") / "d", {"train": records, "valid": records[:5]}
    )
    return path, records


def slow_batch(plan, records, rows, seq_len, confine):
    """Batch arrays by the definition: one token at a time."""
    shape = (len(rows), seq_len)
    names = ("tokens", "targets", "positions", "segment_ids", "weights")
    out = {name: np.zeros(shape, int) for name in (*names, *STORED_LABELS)}
    out["tokens"][:], out["targets"][:] = fakes.PAD, fakes.PAD
    for b, row in enumerate(rows):
        stream = [
            (records[p.document], i, s, i - p.start)
            for s, p in enumerate(plan.row(row))
            for i in range(p.start, p.stop)
        ]
        for t, (record, i, s, position) in enumerate(stream[:seq_len]):
            out["tokens"][b, t] = record.tokens[i]
            out["segment_ids"][b, t] = s + 1 if confine else 1
            out["positions"][b, t] = position if confine else t
            if t + 1 < len(stream):
                target_record, j, target_s, _ = stream[t + 1]
                if target_s == s or not confine:
                    out["weights"][b, t] = 1
                    out["targets"][b, t] = target_record.tokens[j]
                    for name in STORED_LABELS:
                        out[name][b, t] = target_record.labels[name][j]
    return out


@pytest.mark.parametrize("confine", [True, False])
@pytest.mark.parametrize("packing", PACKINGS)
def test_batches_equal_the_slow_reference(dataset, packing, confine):
    path, records = dataset
    config = fakes.make_config(path, packing=packing, confine_to_document=confine, epochs=2)
    plan = make_plan(np.array([len(r.tokens) for r in records]), 16, packing, True, config.seed)
    steps = 0
    for step, batch in enumerate(make_input(config)):
        want = slow_batch(plan, records, range(step * 4, step * 4 + 4), 16, confine)
        for name, array in want.items():
            got = batch.labels[name] if name in STORED_LABELS else getattr(batch, name)
            np.testing.assert_array_equal(got, array, err_msg=f"{name} of step {step}")
        assert batch.tokens.dtype == batch.targets.dtype == batch.positions.dtype == np.int32
        assert batch.weights.dtype == batch.labels["factual"].dtype == np.bool_
        assert set(batch.labels) == set(STORED_LABELS)
        steps += 1
    assert steps == 2 * plan.rows_per_epoch // 4


def test_no_target_crosses_documents_and_every_one_is_seen(dataset):
    path, records = dataset
    config = fakes.make_config(path, shuffle=True)
    pairs = collections.Counter()
    factual = 0
    for batch in make_input(config, epochs=1, drop_remainder=False):
        pairs.update(zip(batch.tokens[batch.weights].tolist(), batch.targets[batch.weights].tolist()))
        factual += int(batch.labels["factual"].sum())
        assert not batch.labels["factual"][~batch.weights].any()
        assert (batch.targets[~batch.weights] == fakes.PAD).all()
    want = collections.Counter()
    for record in records:
        want.update(zip(record.tokens[:-1].tolist(), record.tokens[1:].tolist()))
    assert pairs == want
    assert factual == sum(int(r.labels["factual"][1:].sum()) for r in records)


def test_extras_follow_their_tokens(tmp_path):
    records = fakes.make_records(12, seed=2)
    path = fakes.write_dataset(tmp_path / "d", {"train": records})
    # An nll that names its token: record * 1000 + index.
    values = [np.arange(len(r.tokens)) + 1000.0 * i for i, r in enumerate(records)]
    write_extra(path, "reference_nll", "train", values)
    write_extra(path, "judge", "train", [r.labels["factual"] for r in records])
    source = open_split(path, "train")
    assert source.metadata.extras == ("judge", "reference_nll")
    np.testing.assert_array_equal(source[7].labels["reference_nll"], values[7])
    lookup = {(i, j): int(t) for i, r in enumerate(records) for j, t in enumerate(r.tokens)}
    for batch in make_input(fakes.make_config(path), epochs=1):
        np.testing.assert_array_equal(batch.labels["judge"], batch.labels["factual"])
        assert batch.labels["reference_nll"].dtype == np.float32
        for nll, target in zip(batch.labels["reference_nll"][batch.weights], batch.targets[batch.weights]):
            assert lookup[int(nll) // 1000, int(nll) % 1000] == target
        assert not batch.labels["reference_nll"][~batch.weights].any()
