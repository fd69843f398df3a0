"""The state of the pipeline: one integer that survives a disk, other hosts and other batch sizes."""

from __future__ import annotations

import json

import dataset_fakes as fakes
import jax
import numpy as np
import pytest

from lacy_jax.dataset import make_input
from lacy_jax.errors import CheckpointError, ConfigError, DataError

pytestmark = pytest.mark.oldest


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    small = fakes.write_dataset(
        root / "small", {"train": fakes.make_records(9, 1), "valid": fakes.make_records(3, 2)}
    )
    large = fakes.write_dataset(root / "large", {"train": fakes.make_records(25, 3)})
    other = fakes.write_dataset(root / "other", {"train": fakes.make_records(5, 4)}, tokenizer_hash="t1")
    return small, large, other


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def mixture(paths, **inputs):
    config = fakes.make_config("", **inputs)
    config.dataset.mixture = ((paths[0], 1.0), (paths[1], 3.0))
    return config


CASES = {
    "split, three epochs": lambda paths: fakes.make_config(paths[0], epochs=3),
    "whole, three epochs": lambda paths: fakes.make_config(paths[0], epochs=3, packing="whole"),
    "endless, not shuffled": lambda paths: fakes.make_config(paths[0], shuffle=False),
    "mixture": lambda paths: mixture(paths),
    "mixture with an end": lambda paths: mixture(paths, epochs=2, packing="whole"),
    "no prefetch": lambda paths: fakes.make_config(paths[0], epochs=2, threads=1, prefetch=1),
}


@pytest.mark.parametrize("case", CASES)
def test_resume_at_every_step_through_a_file(paths, tmp_path, case):
    config = CASES[case](paths)
    whole_run = make_input(config)
    limit = whole_run.steps or 24
    states, batches = [whole_run.get_state()], []
    for _ in range(limit):
        batches.append(next(whole_run))
        states.append(whole_run.get_state())
    whole_run.close()
    assert limit > 8
    file = tmp_path / "state.json"
    for step in range(limit):
        file.write_text(json.dumps(states[step]))
        resumed = make_input(config)
        resumed.set_state(json.loads(file.read_text()))
        assert resumed.get_state() == states[step]
        assert equal(next(resumed), batches[step]), f"step {step} after resuming there"
        if step + 1 < limit:
            assert equal(next(resumed), batches[step + 1])
        resumed.close()
    if whole_run.steps is not None:  # a state at the very end stays at the end
        resumed = make_input(config)
        resumed.set_state(json.loads(json.dumps(states[-1])))
        assert list(resumed) == []


def test_prefetch_does_not_leak_into_the_state(paths):
    config = fakes.make_config(paths[0], prefetch=8, threads=4)
    pipeline = make_input(config)
    for step in range(1, 4):
        next(pipeline)
        assert pipeline.get_state()["next_row"] == step * 4
    pipeline.set_state({**pipeline.get_state(), "next_row": 4})  # back in time, in the same object
    again = next(pipeline)
    fresh = make_input(config)
    next(fresh)
    assert equal(again, next(fresh))
    pipeline.close()
    fresh.close()


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("case", ["split, three epochs", "mixture"])
def test_hosts_together_see_the_same_global_batches(paths, case, hosts):
    config = CASES[case](paths)
    single = make_input(config, batch_size=8)
    parts = [make_input(config, batch_size=8, process_index=p, process_count=hosts) for p in range(hosts)]
    for _, want in zip(range(10), single):
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(next(part) for part in parts))
        assert joined.tokens.shape == (8, 16)
        assert equal(joined, want)
    assert {json.dumps(part.get_state()) for part in parts} == {json.dumps(single.get_state())}
    for pipeline in (single, *parts):
        pipeline.close()


def test_another_batch_size_or_host_count_goes_on_without_repeat_or_skip(paths):
    config = fakes.make_config(paths[0], epochs=2)
    rows = np.concatenate([b.tokens for b in make_input(config, batch_size=1)])
    first = make_input(config, batch_size=4)
    seen = [next(first).tokens for _ in range(3)]
    parts = [make_input(config, batch_size=2, process_index=p, process_count=2) for p in range(2)]
    for part in parts:
        part.set_state(first.get_state())
    while True:
        batches = [next(part, None) for part in parts]
        if batches[0] is None:
            break
        seen += [b.tokens for b in batches]
    np.testing.assert_array_equal(np.concatenate(seen), rows[: len(np.concatenate(seen))])
    assert len(rows) - len(np.concatenate(seen)) < 2
    first.close()


def test_the_end_of_the_epochs(paths):
    config = fakes.make_config(paths[0])
    rows = make_input(config, epochs=1).rows_per_epoch[0]
    assert rows % 4, "the test needs a remainder"
    dropped = make_input(config, epochs=1)
    assert len(list(dropped)) == dropped.steps == rows // 4
    assert list(dropped) == [], "stays at its end"
    padded = list(make_input(config, epochs=1, drop_remainder=False))
    assert len(padded) == rows // 4 + 1
    assert padded[-1].tokens.shape == (4, 16)
    assert not padded[-1].weights[rows % 4 :].any()
    assert not padded[-1].segment_ids[rows % 4 :].any()
    assert make_input(config).steps is None


def test_mixture_keeps_its_weights(paths):
    config = mixture(paths, shuffle=False)
    config.input.seq_len = 8
    parts = [fakes.make_config(p, seq_len=8, shuffle=False) for p in paths[:2]]
    a, b = (
        [row.tobytes() for _, batch in zip(range(40), make_input(p)) for row in batch.tokens] for p in parts
    )
    mixed = [row.tobytes() for _, batch in zip(range(10), make_input(config)) for row in batch.tokens]
    assert [row for row in mixed if row in set(a)] == a[:10]
    assert [row for row in mixed if row in set(b)] == b[:30]


def test_states_of_other_data_are_refused(paths):
    config = fakes.make_config(paths[0])
    state = make_input(config).get_state()
    for other in (fakes.make_config(paths[1]), fakes.make_config(paths[0], seq_len=8), mixture(paths)):
        with pytest.raises(CheckpointError, match="another data order"):
            make_input(other).set_state(state)
    with pytest.raises(CheckpointError, match="not one of this pipeline"):
        make_input(config).set_state({"step": 3})
    reseeded = fakes.make_config(paths[0])
    reseeded.seed = 1
    with pytest.raises(CheckpointError, match="seed"):
        make_input(reseeded).set_state(state)
    make_input(config, split="train", batch_size=2).set_state(state)  # the batch size may change


def test_refusals(paths):
    small, _, other = paths
    with pytest.raises(DataError, match=r"tokenizer t1, this run uses t0.*dataset.path"):
        make_input(fakes.make_config(other), tokenizer_hash="t0")
    config = fakes.make_config("")
    config.dataset.mixture = ((small, 1.0), (other, 1.0))
    with pytest.raises(DataError, match="tokenizer t1"):
        make_input(config)
    config.dataset.mixture = ((small, -1.0),)
    with pytest.raises(ConfigError, match=r"dataset.mixture.*positive weight"):
        make_input(config)
    with pytest.raises(ConfigError, match="multiple of the 3 processes"):
        make_input(fakes.make_config(small), process_count=3)
    with pytest.raises(DataError, match="do not fill one batch of 4000"):
        make_input(fakes.make_config(small), batch_size=4000, epochs=1)
    with pytest.raises(DataError, match="no records in split 'valid'"):
        make_input(fakes.make_config(other), split="valid")
