"""What fits: the largest batch, and changes that make a too large step fit. Every question is a compilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections

from lacy_jax.models import ModelConfig
from lacy_jax.planning.slices import Topology
from lacy_jax.training.state import ModelDefinition, optimizer_for

# Rows per device and micro-batch that the search tries.
ROWS = tuple(sorted({2**k for k in range(13)} | {3 * 2**k for k in range(11)}))


def largest_that_fits(needed: Callable[[int], tuple[bool, int]], start: int, available: int) -> int:
    """The largest of `ROWS` (or `start`) that fits; 0 if none does.

    Each question is a compilation. One that runs out of memory fails within seconds and still says what it would need.
    So the search first overshoots, then follows the line through the two points nearest to the boundary.

    Args:
      needed: rows -> (fits, bytes needed).
      start: rows to ask first.
      available: bytes.
    """
    candidates = sorted({*ROWS, start})
    sizes: dict[int, int] = {}
    low, high = -1, len(candidates)  # The largest index known to fit and the smallest known not to.
    index = candidates.index(start)
    while True:
        rows = candidates[index]
        good, sizes[rows] = needed(rows)
        low, high = (index, high) if good else (low, index)
        if high - low <= 1:
            return candidates[low] if low >= 0 else 0
        guess = _guess(sizes, available)
        under = sum(rows <= guess for rows in candidates) - 1
        index = min(max(under, low + 1), high - 1)


def _guess(sizes: dict[int, int], available: int) -> float:
    """Rows at which the bytes needed should reach `available`; well beyond while only one size is known."""
    if len(sizes) == 1:
        ((rows, size),) = sizes.items()
        return (4 if size <= available else 1) * rows * available / size
    near = sorted(sizes.items(), key=lambda item: abs(item[1] - available))[:2]
    (a, size_a), (b, size_b) = sorted(near)
    if size_b <= size_a:
        return (a + b) / 2
    return a + (available - size_a) * (b - a) / (size_b - size_a)


def changes_that_may_fit(
    config: ml_collections.ConfigDict, model: ModelConfig, place: Topology, mesh: Mapping[str, int]
) -> Iterator[dict[str, Any]]:
    """Config changes (dotted field -> value) that need less memory for the same batch, mildest first.

    Layers in a loop keep less than layers one by one, and are compiled in a minute. Splitting the parameters further changes
    neither the arithmetic nor the mask. Recomputing costs time. Cutting rows exchanges keys and values in every layer. With
    more micro-batches, the mask is chosen per micro-batch. Splits that leave no room for parameters and optimiser state are
    left out.

    Args:
      config: the config that does not fit.
      model: its model.
      place: the slices.
      mesh: sizes of the axes of its mesh.
    """
    fsdp, sequence, tensor = mesh["fsdp"], mesh["sequence"], mesh["tensor"]
    room = place.chip.hbm_bytes * tensor / _state_bytes(config, model)
    chips = place.devices // place.slices
    fixed = {"mesh.sequence": sequence, "mesh.tensor": tensor}
    others: dict[str, Any] = {field: size for field, size in fixed.items() if config[field] == -1}
    loop = into_a_loop(config)
    if loop:
        yield loop
    splits: list[dict[str, Any]] = []
    wider = 2 * fsdp
    while wider * sequence * tensor <= chips:
        if wider * room > 1:
            splits.append({"mesh.data": -1, "mesh.fsdp": wider, **others, **loop})
        wider *= 2
    yield from splits
    remat: dict[str, Any] = {**loop, **({} if config.model.remat == "full" else {"model.remat": "full"})}
    if config.model.remat != "full":
        yield remat
        yield from ({**split, **remat} for split in splits)
    parts = 2 * sequence
    while fsdp * parts * tensor <= chips and config.input.seq_len % (2 * parts) == 0:
        if fsdp * room > 1:
            yield {"mesh.data": -1, "mesh.fsdp": fsdp, **others, "mesh.sequence": parts, **remat}
        parts *= 2
    accumulation = 2 * config.train.accumulation
    while config.input.batch_size % (accumulation * place.devices // (sequence * tensor)) == 0:
        yield {"train.accumulation": accumulation, **(splits[-1] if splits else {}), **remat}
        accumulation *= 2


def into_a_loop(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The changes that put layers one by one into a loop, where keeping everything takes the most memory; none if they are in one."""
    if config.model.scan_layers:
        return {}
    remat = "dots" if config.model.remat == "none" else config.model.remat
    return {"model.scan_layers": True, "model.remat": remat}


def _state_bytes(config: ml_collections.ConfigDict, model: ModelConfig) -> int:
    """Bytes of parameters and optimiser state, unsplit."""
    definition = ModelDefinition(model, config.train.trainable)
    params = definition.abstract_params
    moments = jax.eval_shape(optimizer_for(config, definition).init, definition.trained.select(params))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((params, moments)))
