"""Datasets in a bucket of a real storage server: built there, read from there, copied to the host, and what goes wrong."""

from __future__ import annotations

import json
import pathlib
import shutil
import threading
import time
from concurrent import futures

import dataset_fakes as fakes
import jax
import numpy as np
import pytest
from etils import epath

from lacy_jax.config import get_default_config, validate
from lacy_jax.dataset import build_dataset, claim, host_cache, make_input, open_split, write_extra
from lacy_jax.dataset.bucket import BucketShards
from lacy_jax.errors import ConfigError, DataError, LacyError, StorageError
from lacy_jax.run_files import METADATA_FILE


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return fakes.write_dataset(
        tmp_path_factory.mktemp("data") / "one",
        {"train": fakes.make_records(60, 1), "valid": fakes.make_records(6, 2)},
    )


@pytest.fixture
def remote(local, bucket, gcs):
    """The same dataset in a bucket."""
    gcs.put_folder(local, f"{bucket}/data")
    return f"{bucket}/data"


def config_of(path: str, cache: pathlib.Path, gb: float = 1.0, **inputs):
    config = fakes.make_config(path, **inputs)
    config.dataset.cache, config.dataset.cache_gb = str(cache), gb
    return config


def take(pipeline, count: int) -> list:
    found = [next(pipeline) for _ in range(count)]
    pipeline.close()
    return found


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def wait_until_copied(source) -> None:
    source.wait_for_copies()
    assert all(source._records.local)


@pytest.mark.parametrize("gb", [0.0, 1.0])
def test_batches_from_a_bucket_are_those_from_a_disk(local, remote, tmp_path, gb):
    ours = take(make_input(config_of(remote, tmp_path, gb)), 12)
    assert same(ours, take(make_input(fakes.make_config(local)), 12))
    assert (tmp_path / "lock").exists() == bool(gb)


def test_a_copied_shard_costs_no_requests_and_a_restart_finds_it(local, remote, tmp_path, gcs):
    config = config_of(remote, tmp_path)
    pipeline = make_input(config)
    next(pipeline)
    wait_until_copied(pipeline.sources[0])
    pipeline.close()
    again = make_input(config).sources[0]
    gcs.fail(403)  # Requests are not counted: those of the closed pipeline's threads may still be under way.
    again.start_copying()
    wait_until_copied(again)
    for source in (pipeline.sources[0], again):
        assert all(len(source[i].tokens) for i in range(60))
        assert all(source._records.local), "a record was asked for in the bucket"
    assert not list(tmp_path.glob(".*"))


def test_a_run_goes_on_with_the_same_bits_on_a_host_with_an_empty_cache(remote, tmp_path):
    pipeline = make_input(config_of(remote, tmp_path / "a"))
    for _ in range(5):
        next(pipeline)
    state = json.dumps(pipeline.get_state())
    expected = take(pipeline, 5)
    resumed = make_input(config_of(remote, tmp_path / "b"))
    resumed.set_state(json.loads(state))
    assert same(take(resumed, 5), expected)


def test_extras_are_copied_first_and_read_from_the_copy(local, bucket, gcs, tmp_path):
    source = open_split(local, "train")
    folder = tmp_path / "with"
    shutil.copytree(local, folder)
    write_extra(folder, "rarity", "train", (np.arange(n, dtype=np.float32) for n in source.lengths))
    gcs.put_folder(folder, f"{bucket}/data")
    cache = host_cache.HostCache(str(tmp_path / "cache"))
    remote = open_split(f"{bucket}/data", "train", cache)
    assert same(remote[7].labels["rarity"], open_split(folder, "train")[7].labels["rarity"])
    with pytest.raises(
        StorageError, match=r"no room for a copy of gs://.*extra-rarity-train\.npy: .*cache_gb"
    ):
        open_split(f"{bucket}/data", "train", host_cache.HostCache(str(tmp_path / "none"), 0.0))


def test_an_extra_can_be_added_in_the_bucket(local, remote):
    source = open_split(remote, "train")
    write_extra(remote, "rarity", "train", (np.full(n, n, np.int32) for n in source.lengths))
    record = open_split(remote, "train")[3]
    assert set(record.labels["rarity"]) == {len(record.tokens)}


# -- the cache's bounds --------------------------------------------------------------------------------------------------


def cache_bytes(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != "lock")


def test_the_cache_keeps_its_bound_and_what_does_not_fit_is_read_from_the_bucket(
    local, remote, tmp_path, capfd
):
    sizes = [path.stat().st_size for path in pathlib.Path(local).glob("*train*array_record*")]
    gb = (sizes[0] + sizes[1] + 10) / 1e9
    pipeline = make_input(config_of(remote, tmp_path, gb))
    ours = [next(pipeline)]
    pipeline.sources[0].wait_for_copies()
    ours += take(pipeline, 11)
    assert same(ours, take(make_input(fakes.make_config(local)), 12))
    assert sum(pipeline.sources[0]._records.local) == 2
    assert cache_bytes(tmp_path) <= gb * 1e9
    err = capfd.readouterr().err
    assert "config.dataset.cache_gb" in err
    assert "1 of 3 shards are read from the bucket" in err


def test_files_of_other_runs_make_room_the_oldest_first(tmp_path, roomy_disk):
    cache = host_cache.HostCache(str(tmp_path), 30e-9)
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(bytes(10))
        time.sleep(0.01)
    path = cache.get("mine", 15, lambda: [bytes(15)], lambda path: True)
    assert path.stat().st_size == 15
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "lock", "mine"]
    with pytest.raises(host_cache.CacheFull):
        cache.get("more", 16, lambda: [bytes(16)], lambda path: True)


def test_a_disk_that_is_almost_full_is_not_filled(local, remote, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(host_cache, "_FREE_SHARE", 0.05)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(host_cache.shutil, "disk_usage", lambda path: usage._replace(free=usage.total // 100))
    pipeline = make_input(config_of(remote, tmp_path))
    ours = [next(pipeline)]
    pipeline.sources[0].wait_for_copies()
    assert same(ours, take(make_input(fakes.make_config(local)), 1))
    take(pipeline, 1)
    assert "GB are free on the disk of" in capfd.readouterr().err
    assert cache_bytes(tmp_path) == 0
    write_extra(remote, "rarity", "train", (np.full(n, n, np.int32) for n in pipeline.sources[0].lengths))
    assert "rarity" in open_split(remote, "train", host_cache.HostCache(str(tmp_path))).extras


def test_a_disk_that_fails_while_a_shard_is_copied_is_one_line(remote, tmp_path, monkeypatch, capfd):
    def full(*args):
        yield b"x"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lacy_jax.dataset.bucket._blocks", full)
    pipeline = make_input(config_of(remote, tmp_path))
    next(pipeline)
    pipeline.sources[0].wait_for_copies()
    take(pipeline, 3)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "dataset cache" in line]
    assert line.startswith(f"warning: dataset cache: cannot copy {remote}/")
    assert line.endswith("No space left on device")
    assert cache_bytes(tmp_path) == 0


def test_a_damaged_copy_is_made_again(local, remote, tmp_path):
    pipeline = make_input(config_of(remote, tmp_path))
    next(pipeline)
    wait_until_copied(pipeline.sources[0])
    pipeline.close()
    (copy, *_) = sorted(tmp_path.glob("*-00000-of-*"))
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    pipeline = make_input(config_of(remote, tmp_path))
    ours = [next(pipeline)]
    wait_until_copied(pipeline.sources[0])
    ours += take(pipeline, 3)
    assert same(ours, take(make_input(fakes.make_config(local)), 4))
    content[len(content) // 2] ^= 1
    assert copy.read_bytes() == bytes(content)


# -- what goes wrong in the bucket ---------------------------------------------------------------------------------------


def test_no_such_bucket_and_no_dataset(bucket, tmp_path):
    for path in ("gs://no-such-bucket-at-all/data", f"{bucket}/nothing"):
        with pytest.raises(DataError, match=f"dataset {path}: no such bucket or folder"):
            open_split(path, "train")
    with pytest.raises(DataError, match="dataset s3://x/y: ArrayRecord reads local files and gs:// only"):
        open_split("s3://x/y", "train")
    with pytest.raises(ConfigError, match=r"dataset\.cache_gb"):
        validate(config_of("x", tmp_path, -1.0))


def test_a_bucket_that_refuses_is_one_line(remote, gcs, tmp_path):
    pipeline = make_input(config_of(remote, tmp_path, 0.0, threads=1, prefetch=1))
    next(pipeline)
    gcs.fail(403)
    with pytest.raises(StorageError, match=f"cannot read {remote}/.*array_record-.*403") as error:
        list(pipeline)
    assert "\n" not in str(error.value)
    pipeline.close()
    with pytest.raises(StorageError, match=f"cannot read {remote}.*Forbidden"):
        make_input(config_of(remote, tmp_path, 0.0))


def test_what_passes_is_waited_for(local, remote, gcs, tmp_path):
    pipeline = make_input(config_of(remote, tmp_path, 0.0, threads=1, prefetch=1))
    ours = [next(pipeline)]
    ahead = pipeline._prefetch
    fault = gcs.fail(503, frozenset(("GET",)), times=ahead + 8)  # Some of them twice or more.
    ours += take(pipeline, 2 * ahead)  # More than can have been read before.
    assert fault.hits
    assert same(ours, take(make_input(fakes.make_config(local, threads=1, prefetch=1)), 1 + 2 * ahead))


@pytest.mark.parametrize("gb", [0.0, 1.0])
def test_a_shard_that_is_replaced_under_a_run_is_named(remote, local, gcs, tmp_path, gb, capfd):
    """By content of the same size, which nothing else would notice; what was copied before is still right."""
    source = open_split(remote, "train", host_cache.HostCache(str(tmp_path), gb))
    expected = source[0]
    name = "lacy-train.array_record-00000-of-00003"
    if gb:
        source.start_copying()
        source.wait_for_copies()
    gcs.put(f"{remote}/{name}", (pathlib.Path(local) / name).read_bytes())
    if gb:
        assert same(source[0].tokens, expected.tokens)
        return
    with pytest.raises(
        LacyError, match=rf"{remote}/{name} was replaced or deleted while it was in use"
    ) as error:
        source[0]
    assert not isinstance(error.value, (DataError, StorageError)), "it is neither skipped nor tried again"
    cold = open_split(remote, "train", host_cache.HostCache(str(tmp_path), 1.0))
    gcs.put(f"{remote}/{name}", (pathlib.Path(local) / name).read_bytes())
    cold.start_copying()
    assert isinstance(cold._records, BucketShards)
    cold.wait_for_copies()
    assert "warning: dataset cache:" in capfd.readouterr().err


def test_a_damaged_record_in_a_bucket_is_named_like_one_on_a_disk(remote, local, gcs, tmp_path):
    name = "lacy-train.array_record-00001-of-00003"
    content = bytearray((pathlib.Path(local) / name).read_bytes())
    content[200:4000] = bytes(3800)
    gcs.put(f"{remote}/{name}", bytes(content))
    source = open_split(remote, "train", host_cache.HostCache(str(tmp_path), 0.0))
    with pytest.raises(DataError, match=rf"{name}, record \d+: corrupt"):
        [source[i] for i in range(len(source))]
    gcs.put(f"{remote}/{name}", bytes(content[:-100]))
    with pytest.raises(DataError, match=rf"{name}: \d+ bytes, expected"):
        open_split(remote, "train")


# -- building there ------------------------------------------------------------------------------------------------------


def prepare(path: str, runner: str = "", **fields):
    config = get_default_config()
    config.corpus.people, config.tokenizer.vocab_size = 12, 400
    config.dataset.shards, config.dataset.valid_fraction = 2, 0.2
    for name, value in fields.items():
        config.dataset[name] = value
    return build_dataset(config, path, runner)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "local"
    return folder, prepare(str(folder))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_a_dataset_built_in_a_bucket_is_the_one_built_on_a_disk(prepared, bucket, gcs):
    path = f"{bucket}/some/where"
    assert prepare(path, workers=2) == prepared[1]
    there = {name.removeprefix("some/where/"): gcs.read(f"{bucket}/{name}") for name in gcs.objects(bucket)}
    assert there == contents(prepared[0])
    assert prepare(path) == prepared[1]  # It is there already.


def test_a_build_that_failed_goes_on_in_the_bucket(prepared, bucket, gcs):
    path = f"{bucket}/d"
    gcs.fail(403, match="train-00001")
    with pytest.raises(StorageError, match=r"cannot write .*train-00001"):
        prepare(path)
    gcs.heal()
    assert prepare(path) == prepared[1]
    assert not gcs.writes(r"train-00000\.array_record"), "finished shards are kept"
    assert {n.removeprefix("d/") for n in gcs.objects(bucket)} == set(contents(prepared[0]))


def test_building_in_no_bucket_is_one_line(gcs):
    with pytest.raises(
        DataError, match=r"config\.dataset\.path = gs://no-such-bucket-at-all/d: no such bucket"
    ):
        prepare("gs://no-such-bucket-at-all/d")


def test_one_process_builds_at_a_time(bucket, gcs, prepared):
    path = epath.Path(bucket) / "d"
    with claim.claimed(path), pytest.raises(DataError, match=r"process \d+ of .* is building it"):
        prepare(str(path))
    assert not gcs.objects(bucket)
    said = {"host": "gone", "process": 1, "time": time.time() - claim.STALE_S - 1}
    gcs.put(f"{bucket}/d/.build/lock", json.dumps(said).encode())
    assert prepare(str(path)) == prepared[1]


def test_of_many_that_find_a_claim_left_behind_one_takes_it(bucket, gcs):
    """And the others are told; its owner, who comes back late, neither renews nor removes the new one."""
    lock = f"{bucket}/d/.build/lock"
    for _ in range(5):
        late = claim._BucketClaim(lock)
        late.take()
        said = {"host": "gone", "process": 1, "time": time.time() - claim.STALE_S - 1}
        gcs.put(lock, json.dumps(said).encode())
        claims = [claim._BucketClaim(lock) for _ in range(8)]
        ready = threading.Barrier(len(claims))

        def take(one, ready=ready):
            ready.wait()
            return one.take()

        with futures.ThreadPoolExecutor(len(claims)) as pool:
            holders = list(pool.map(take, claims))
        assert holders.count(None) == 1, holders
        winner = claims[holders.index(None)]
        late.renew()
        with pytest.raises(FileNotFoundError):
            late.give_back()
        assert json.loads(gcs.read(lock))["id"] == winner._id
        winner.renew()
        winner.give_back()
        assert not gcs.objects(bucket)


def test_a_claim_whose_answer_was_lost_is_ours(bucket, gcs, monkeypatch):
    """The client sends it again, and is told that the object is there."""
    one = claim._BucketClaim(f"{bucket}/d/.build/lock")
    write = one._write

    def twice(mode):
        write(mode)
        write(mode)

    monkeypatch.setattr(one, "_write", twice)
    assert one.take() is None
    one.give_back()
    assert not gcs.objects(bucket)


@pytest.mark.slow
def test_beam_builds_in_a_bucket(prepared, bucket, gcs):
    pytest.importorskip("apache_beam")
    prepare(f"{bucket}/beam", "DirectRunner")
    assert gcs.read(f"{bucket}/beam/{METADATA_FILE}") == contents(prepared[0])[METADATA_FILE]
