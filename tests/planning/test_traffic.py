"""Bytes that instructions of a compiled program move to and from HBM; the program is in the form that libtpu 0.0.50 writes."""

from __future__ import annotations

import pytest

from lacy_jax.planning.hlo import Module
from lacy_jax.planning.traffic import moved_bytes, stored_bytes

PROGRAM = """
HloModule jit_train_step, is_scheduled=true

%inner (a: bf16[24,128,256], i: s32[]) -> bf16[1,128,256] {
  %a = bf16[24,128,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %i = s32[] parameter(1)
  ROOT %cut = bf16[1,128,256]{2,1,0:T(8,128)(2,1)} dynamic-slice(%a, %i, %i, %i), dynamic_slice_sizes={1,128,256}
}

%stack (total: f32[24,128,256], layer: f32[1,128,256], weights: bf16[24,128,256], i: s32[]) -> f32[24,128,256] {
  %total = f32[24,128,256]{2,1,0:T(8,128)} parameter(0)
  %layer = f32[1,128,256]{2,1,0:T(8,128)} parameter(1)
  %weights = bf16[24,128,256]{2,1,0:T(8,128)(2,1)} parameter(2)
  %i = s32[] parameter(3)
  %same = bf16[24,128,256]{2,1,0:T(8,128)(2,1)} bitcast(%weights)
  %own = bf16[1,128,256]{2,1,0:T(8,128)(2,1)} fusion(%same, %i), kind=kLoop, calls=%inner
  %wide = f32[1,128,256]{2,1,0:T(8,128)} convert(%own)
  %sum = f32[1,128,256]{2,1,0:T(8,128)} add(%layer, %wide)
  ROOT %updated = f32[24,128,256]{2,1,0:T(8,128)} dynamic-update-slice(%total, %sum, %i, %i, %i)
}

%retiled (a: bf16[24,128,256]) -> bf16[24,128,256] {
  %a = bf16[24,128,256]{2,1,0:T(16,128)(2,1)} parameter(0)
  ROOT %copy = bf16[24,128,256]{2,1,0:T(8,128)(2,1)} copy(%a)
}

%retiled_layer (a: bf16[1,128,256]) -> bf16[1,128,256] {
  %a = bf16[1,128,256]{2,1,0:T(16,128)(2,1)} parameter(0)
  %same = bf16[1,128,256]{2,1,0:T(16,128)(2,1)} bitcast(%a)
  ROOT %copy = bf16[1,128,256]{2,1,0:T(8,128)(2,1)} copy(%same)
}

%cut_two (a: bf16[24,128,256], i: s32[]) -> (bf16[1,128,256], bf16[1,128,256]) {
  %a = bf16[24,128,256]{2,1,0:T(16,128)(2,1)} parameter(0)
  %view = bf16[24,128,256]{2,1,0:T(8,128)(2,1)} fusion(%a), kind=kLoop, calls=%retiled
  %i = s32[] parameter(1)
  %cut = bf16[1,128,256]{2,1,0:T(8,128)(2,1)} dynamic-slice(%view, %i, %i, %i), dynamic_slice_sizes={1,128,256}
  %first = bf16[1,128,256]{2,1,0:T(16,128)(2,1)} copy(%cut)
  %second = bf16[1,128,256]{2,1,0:T(16,128)(2,1)S(1)} copy(%cut)
  ROOT %both = (bf16[1,128,256]{2,1,0:T(16,128)(2,1)}, bf16[1,128,256]{2,1,0:T(16,128)(2,1)S(1)}) tuple(%first, %second)
}

%put (a: bf16[24,128,256], layer: bf16[1,128,256], i: s32[]) -> bf16[24,128,256] {
  %a = bf16[24,128,256]{2,1,0:T(16,128)(2,1)} parameter(0)
  %view = bf16[24,128,256]{2,1,0:T(8,128)(2,1)} fusion(%a), kind=kLoop, calls=%retiled
  %layer = bf16[1,128,256]{2,1,0:T(16,128)(2,1)} parameter(1)
  %own = bf16[1,128,256]{2,1,0:T(8,128)(2,1)} fusion(%layer), kind=kLoop, calls=%retiled_layer
  %i = s32[] parameter(2)
  ROOT %updated = bf16[24,128,256]{2,1,0:T(16,128)(2,1)} dynamic-update-slice(%view, %own, %i, %i, %i)
}

%whole (a: bf16[24,128,256]) -> bf16[24,128,256] {
  %a = bf16[24,128,256]{2,1,0:T(16,128)(2,1)} parameter(0)
  ROOT %view = bf16[24,128,256]{2,1,0:T(8,128)(2,1)} fusion(%a), kind=kLoop, calls=%retiled
}

ENTRY %main (total: f32[24,128,256], layer: f32[1,128,256], weights: bf16[24,128,256], i: s32[]) -> f32[24,128,256] {
  %total = f32[24,128,256]{2,1,0:T(8,128)} parameter(0)
  %layer = f32[1,128,256]{2,1,0:T(8,128)S(1)} parameter(1)
  %weights = bf16[24,128,256]{2,1,0:T(8,128)(2,1)} parameter(2)
  %i = s32[]{:T(128)S(6)} parameter(3)
  %copy-start.1 = (f32[1,128,256]{2,1,0:T(8,128)S(1)}, f32[1,128,256]{2,1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%total)
  %two = (f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}) custom-call(%i), custom_call_target="tpu_custom_call"
  %add = f32[8,128]{1,0:T(8,128)} add(%two#0, %two#1)
  %stacked = bf16[24,128,256]{2,1,0:T(16,128)(2,1)} copy(%weights)
  %fusion.2 = (bf16[1,128,256]{2,1,0:T(16,128)(2,1)}, bf16[1,128,256]{2,1,0:T(16,128)(2,1)S(1)}) fusion(%stacked, %i), kind=kLoop, calls=%cut_two
  %fusion.3 = bf16[24,128,256]{2,1,0:T(16,128)(2,1)} fusion(%stacked, %fusion.2#0, %i), kind=kLoop, calls=%put
  %fusion.4 = bf16[24,128,256]{2,1,0:T(8,128)(2,1)} fusion(%stacked), kind=kLoop, calls=%whole
  ROOT %fusion.1 = f32[24,128,256]{2,1,0:T(8,128)} fusion(%total, %layer, %weights, %i), kind=kLoop, calls=%stack
}
"""


@pytest.mark.parametrize(
    ("array", "size"),
    [
        ("bf16[8,1024,64]{2,1,0:T(8,128)(2,1)}", 8 * 1024 * 128 * 2),  # 64 of 128 lanes are padding.
        ("bf16[8,1024,64]{1,2,0:T(8,128)(2,1)}", 8 * 1024 * 64 * 2),  # Time on the lanes: none.
        ("f32[1000]{0:T(1024)}", 4096),
        ("f32[3,128]{1,0:T(4,128)}", 4 * 128 * 4),
        ("f32[8,128]{1,0:T(8,128)S(1)}", 0),
        ("f32[8,100]", 3200),
        ("u32[]", 4),
    ],
)
def test_arrays_are_padded_to_their_tiles(array, size):
    assert stored_bytes(array) == size


def test_slices_and_updates_in_place_count_as_such_and_vector_memory_not_at_all():
    module = Module(PROGRAM)
    main = module.computations["main"]
    layer = 128 * 256
    # The slice of the weights in bfloat16, the update of the sums in float32; `layer` lies in vector memory.
    assert moved_bytes(module, "main", main["fusion.1"]) == layer * 2 + layer * 4
    assert moved_bytes(module, "main", main["copy-start.1"]) == layer * 4
    assert moved_bytes(module, "main", main["add"]) == 2 * 8 * 128 * 4


def test_a_copy_to_other_tiles_inside_a_fusion_moves_nothing():
    """In the form of TPU7x, where arrays of bfloat16 lie in tiles of 16 rows: each stack is viewed whole before a layer is cut from it."""
    module = Module(PROGRAM)
    main = module.computations["main"]
    layer, stack = 128 * 256 * 2, 24 * 128 * 256 * 2
    assert (
        moved_bytes(module, "main", main["fusion.2"]) == layer + layer
    )  # Read once; one result lies in vector memory.
    assert moved_bytes(module, "main", main["fusion.3"]) == layer + layer
    assert moved_bytes(module, "main", main["fusion.4"]) == stack + stack  # Here the copy is the work.
    assert moved_bytes(module, "main", main["stacked"]) == stack + stack
