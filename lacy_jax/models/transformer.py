"""The language model: embedding, scanned layers, final norm, and separate base, CALL and query heads."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32

from lacy_jax.models.attention import KERNEL_RESIDUALS, attention
from lacy_jax.models.axes import Partition, parameter
from lacy_jax.models.cache import Cache, cached_attention, packing, reach, slots, stored
from lacy_jax.models.config import ModelConfig, check_model_config
from lacy_jax.models.layers import INIT_STD, Block, Norm, dropout, look_up
from lacy_jax.models.mask import Mask
from lacy_jax.registry import Registry

_Tree = TypeVar("_Tree")


@dataclasses.dataclass(frozen=True)
class Remat:
    """What the backward pass recomputes of a layer.

    Attributes:
      name: as in the config field `model.remat`.
      description: one line for help texts and docs.
      saveable: the `jax.checkpoint` policy for what is kept; None keeps everything.
    """

    name: str
    description: str
    saveable: Callable[..., bool] | None = dataclasses.field(default=None, repr=False)


_KERNEL = jax.checkpoint_policies.save_only_these_names(KERNEL_RESIDUALS)
REMATS: Registry[Remat] = Registry("remat policy", (
    Remat("none", "nothing is recomputed"),
    Remat("full", "the whole layer", jax.checkpoint_policies.nothing_saveable),
    Remat("attention", "the layer, but not attention", _KERNEL),
    Remat(
        "dots", "all but matmuls and attention",
        jax.checkpoint_policies.save_from_both_policies(jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _KERNEL),
    ),
))  # fmt: skip


class Transformer(nnx.Module):
    """Decoder-only transformer, gpt2 or llama style.

    Parameters are float32; activations and matmuls have `cfg.dtype`. All state is `nnx.Param`; dropout keys are
    arguments. A model is a pytree of its parameters, so compiled functions take it, or a slice of its layers, whole.

    Base head W and CALL head w_call (arXiv:2602.12005 §4) are separate parameters, so the base head stays V wide.
    w_call starts at zero, so that every position starts with the CALL logit c = 0, which is the mean of the base logits
    at initialisation; p(CALL) starts like that of an average piece, at about 1 / (V + 1). Under the renormalised
    objective only delegated positions ever change w_call, and only upwards, so a random initial direction would stay in
    the gate for good.

    With `cfg.query_dim` there is a third head, which turns a hidden state into the vector that an index is asked with; its
    temperature is learned in the logarithm of its inverse, from 0.07 (arXiv:2103.00020 §2.5).
    """

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        check_model_config(cfg)
        self.cfg = cfg

        def table(rows: int, axes: tuple[str, ...]) -> nnx.Param:
            return parameter(
                INIT_STD * jax.random.normal(rngs.params(), (rows, cfg.d_model), jnp.float32), axes
            )

        self.embedding = table(cfg.vocab_size, ("vocab", "embed"))
        self.position = table(cfg.max_seq_len, ("position", "embed")) if cfg.family == "gpt2" else None
        self.blocks: Any = Block(cfg, rngs)  # Stacked; a list of blocks after `for_decoding`.
        self.final_norm = Norm(cfg, layers=0)
        self.head = None if cfg.tie_head else table(cfg.vocab_size, ("vocab", "embed"))
        self.call = parameter(jnp.zeros((cfg.d_model,), jnp.float32), ("feature",))
        if cfg.query_dim:
            drawn = INIT_STD * jax.random.normal(rngs.params(), (cfg.query_dim, cfg.d_model), jnp.float32)
            self.query_head = parameter(drawn, ("query", "embed"))
            self.query_scale = parameter(jnp.log(jnp.float32(1 / 0.07)), ())

    def __call__(
        self,
        tokens: Int32[Array, "B T"],
        positions: Int32[Array, "B T"],
        segment_ids: Int32[Array, "B T"],
        *,
        deterministic: bool = True,
        rngs: nnx.Rngs | None = None,
        first_trained: int = 0,
        partition: Partition | None = None,
    ) -> Float[Array, "B T D"]:
        """Hidden states after the final norm, in the compute dtype: the input of both heads.

        Args:
          tokens: ids below V.
          positions: place within the segment, from 0; below `cfg.max_seq_len`.
          segment_ids: attention stays within equal ids; 0 = padding, which affects nothing and stays finite.
          deterministic: False enables dropout (if `cfg.dropout` > 0).
          rngs: source of the dropout key (stream "dropout" or default); needed only for dropout.
          first_trained: parameters of the layers before this one get no gradient.
          partition: how activations are sharded; None leaves it to the compiler.

        Raises:
          ValueError: dropout is enabled but `rngs` is missing.
        """
        keys = self._dropout_keys(deterministic, rngs)

        def constrain(x: Array) -> Array:
            return x if partition is None else partition.constrain(x, ("batch", "sequence", None))

        def layer(block: Block, x: Array, key: jax.Array | None, window: int) -> Array:
            q, k, v = block.project(x, positions)
            mask = Mask(segment_ids, window)
            mixed = attention(q, k, v, mask, self.cfg.attention, partition, self.cfg.attention_block)
            return constrain(block.finish(x, mixed, key))

        x = dropout(
            self.embed(tokens, positions, partition), self.cfg.dropout, None if keys is None else keys[0]
        )
        x, keys = constrain(x), None if keys is None else keys[1:]
        for first, last in ((0, first_trained), (first_trained, self.cfg.n_layers)):
            if first < last:
                x = self._through_layers(layer, x, keys, first, last, frozen=last == first_trained)
        return self.final_norm(x)

    def for_decoding(self) -> DecodingModel:
        """The same model laid out for `decode`: separate arrays for each layer's parameters, matrices in `cfg.dtype`.

        On a CPU, a layer sliced from the stacked parameters is copied at every call, which takes longer than the
        arithmetic of a token. This needs a second copy of the layers, which is kept as long as the model and its parameters;
        `__call__` needs the stacked ones.
        """
        now = jax.tree.leaves(self)
        before, found = _LAID_OUT.get(self, ([], None))
        if found is None or any(a is not b for a, b in zip(now, before, strict=True)):
            leaves, structure = jax.tree.flatten(_laid_out(self))
            found = DecodingModel(tuple(leaves), _interned(structure))
            _LAID_OUT[self] = now, found
        return found

    def decode(
        self,
        tokens: Int32[Array, "B S"],
        positions: Int32[Array, "B S"],
        cache: Cache,
        pack: int | None = None,
    ) -> tuple[Float[Array, "B S D"], Cache]:
        """Run S more tokens of each row, reading and extending the cache.

        A token is stored at the slot of its position and sees the slots up to it, so a row must be fed without gaps
        from position 0; rows may be at different positions, and a chunk may hold several tokens. Tokens at positions
        outside [0, cache.max_len) are padding: they are not stored, and their output is finite but meaningless. The
        model that `for_decoding` returns is the fast one.

        Args:
          tokens, positions, cache: as above.
          pack: if many tokens are padding, the largest number of tokens that are not. Only so many go through the
            matrices; any more would be lost.

        Returns:
          Hidden states like those of `__call__`, and the extended cache. Donate the old cache to the jitted caller to
          have it updated in place.
        """
        windows = self.cfg.windows
        columns = slots(positions, cache.max_len)
        real = columns < cache.max_len
        seen = {window: reach(cache, Mask(window=window, places=positions), real) for window in set(windows)}
        packed, spread = packing(real, pack)
        places = packed(positions)
        x = self.embed(packed(tokens), places)
        keys, values = list(cache.k), list(cache.v)
        for index, block in enumerate(self._layers()):  # Each layer's cache is updated and read in place.
            q, k, v = (spread(a) for a in block.project(x, places))
            keys[index], values[index] = stored(keys[index], k, columns), stored(values[index], v, columns)
            # With a single row, XLA's CPU backend would otherwise write all slots anew, a second time, into the products.
            keys[index], values[index] = jax.lax.optimization_barrier((keys[index], values[index]))
            x = block.finish(x, packed(cached_attention(q, keys[index], values[index], seen[windows[index]])))
        return spread(self.final_norm(x)), Cache(tuple(keys), tuple(values))

    def head_kernel(self) -> Float[Array, "V D"]:
        """The base head W, float32; the embedding table if tied."""
        return (self.embedding if self.head is None else self.head)[...]

    def call_vector(self) -> Float[Array, " D"]:
        """The CALL head w_call, float32 [D]."""
        return self.call[...]

    def logits(self, hidden: Float[Array, "*B D"]) -> tuple[Float[Array, "*B V"], Float[Array, "*B"]]:
        """Base logits z = W h and CALL logit c = w_call . h, float32. For decoding, because it forms all V columns."""
        kernel = self.head_kernel().astype(hidden.dtype)
        z = jnp.einsum("...d,vd->...v", hidden, kernel, preferred_element_type=jnp.float32)
        c = hidden.astype(jnp.float32) @ self.call_vector()
        return z, c

    def queries(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B Q"]:
        """Unit vectors, float32, of what the text is about to state; only with `cfg.query_dim`."""
        kernel = self.query_head[...].astype(hidden.dtype)
        q = jnp.einsum("...d,qd->...q", hidden, kernel, preferred_element_type=jnp.float32)
        return q * jax.lax.rsqrt(jnp.sum(q * q, axis=-1, keepdims=True) + 1e-12)

    def query_sharpness(self) -> Float[Array, ""]:
        """The inverse temperature of the query head's cosines, at most 100, as in arXiv:2103.00020."""
        return jnp.exp(jnp.minimum(self.query_scale[...], jnp.log(100.0)))

    @jax.named_scope("embedding")
    def embed(
        self,
        tokens: Int32[Array, "B T"],
        positions: Int32[Array, "B T"],
        partition: Partition | None = None,
    ) -> Float[Array, "B T D"]:
        """The input of the first layer, in the compute dtype."""

        def rows(table: nnx.Param, places: Array) -> Array:
            def look(table: Array, places: Array) -> Array:
                return look_up(table, places, self.cfg.dtype)

            if partition is None:
                return look(table[...], places)
            # Gathers the table once; otherwise its gradient would gather the activations of the whole batch.
            whole, split = (None, None), ("batch", "sequence")
            gathered = partition.constrain(table[...], whole)
            if gathered.dtype == jnp.float32:
                return look(gathered, places)
            # By device, so that this gradient is rounded as the table is before it is exchanged. (In float32 the compiler exchanges it
            # with others; on a CPU, one sum more that depends on no other may starve the threads of 8 simulated devices.)
            return partition.per_shard(look, (whole, split), (*split, None))(gathered, places)

        x = rows(self.embedding, tokens)
        # Positions of padding may lie outside the table; their values are never used.
        return x if self.position is None else x + rows(self.position, positions)

    def _dropout_keys(self, deterministic: bool, rngs: nnx.Rngs | None) -> jax.Array | None:
        if deterministic or self.cfg.dropout == 0.0:
            return None
        if rngs is None:
            raise ValueError("dropout needs a key: pass rngs=nnx.Rngs(dropout=key), or deterministic=True")
        return jax.random.split(rngs.dropout(), 1 + self.cfg.n_layers)

    def _layers(self) -> list[Block]:
        """The layers one by one."""
        if isinstance(self.blocks, nnx.List):
            return list(self.blocks)
        return [jax.tree.map(lambda p, i=i: p[i], self.blocks) for i in range(self.cfg.n_layers)]

    def _through_layers(
        self,
        layer: Callable[[Block, Array, jax.Array | None, int], Array],
        x: Array,
        keys: jax.Array | None,
        first: int,
        last: int,
        frozen: bool,
    ) -> Array:
        """Apply `layer` to the stacked parameters of layers first .. last - 1 in turn, under the remat policy.

        The loop's body is one cycle of windows, which is a single layer if all layers have the same window. Remaining
        layers follow the loop.
        """
        windows = self.cfg.windows[first:last]
        cycle = windows[: len(self.cfg.sliding_window) or 1]
        blocks = jax.lax.stop_gradient(self.blocks) if frozen else self.blocks

        def one(x: Array, several: Any, index: int, window: int) -> Array:
            block, key = jax.tree.map(lambda a: a[index], several)
            return layer(block, x, key, window)

        saveable = REMATS[self.cfg.remat].saveable
        if saveable is not None:
            # Inside a scan the compiler cannot undo the recomputation, so it needs no barrier.
            barrier = not self.cfg.scan_layers
            one = jax.checkpoint(one, policy=saveable, prevent_cse=barrier, static_argnums=(2, 3))

        def body(x: Array, several: Any) -> tuple[Array, None]:
            for index, window in enumerate(cycle):
                x = one(x, several, index, window)
            return x, None

        loops, left = divmod(len(windows), len(cycle))
        cycles = jax.tree.map(
            lambda a: a[first : last - left].reshape(loops, len(cycle), *a.shape[1:]), (blocks, keys)
        )
        x = jax.lax.scan(body, x, cycles, unroll=1 if self.cfg.scan_layers else loops)[0]
        for index in range(last - left, last):
            x = one(x, (blocks, keys), index, self.cfg.windows[index])
        return x


_LAID_OUT: weakref.WeakKeyDictionary[Transformer, tuple[list[Any], DecodingModel]] = (
    weakref.WeakKeyDictionary()
)
"""What `for_decoding` made last for a model, and of which parameters."""


def _laid_out(model: Transformer) -> Transformer:
    shardings = {leaf.sharding for leaf in jax.tree.leaves(model) if isinstance(leaf, jax.Array)}
    if jax.default_backend() != "cpu" or any(len(sharding.device_set) > 1 for sharding in shardings):
        return _lay_out_on_device(model)
    # By numpy on a single CPU device: a program would take longer to compile than the copying takes.
    sharding, where = next(iter(shardings), None), None
    if isinstance(sharding, jax.sharding.NamedSharding):
        where = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return jax.device_put(_lay_out(jax.tree.map(np.asarray, model)), where)


def _lay_out(model: Transformer) -> Transformer:
    def narrow(parameter: Any) -> Any:
        # Norm scales stay float32.
        return parameter.astype(model.cfg.dtype) if parameter.ndim > 1 else parameter

    model.blocks = nnx.List([jax.tree.map(narrow, block) for block in model._layers()])
    return model


_lay_out_on_device = jax.jit(_lay_out)


@jax.tree_util.register_pytree_node_class
class DecodingModel:
    """What `Transformer.for_decoding` returns: its parameters as one tuple, because compiled functions are called for
    every few tokens, and to flatten the module in Python each time takes as long as a small model needs for a token.
    """

    def __init__(self, leaves: tuple[Array, ...], structure: _Structure):
        self._leaves, self._structure = leaves, structure

    def tree_flatten(self) -> tuple[tuple[Array, ...], _Structure]:
        """For JAX."""
        return self._leaves, self._structure

    @classmethod
    def tree_unflatten(cls, structure: _Structure, leaves: tuple[Array, ...]) -> DecodingModel:
        """For JAX."""
        return cls(tuple(leaves), structure)

    @property
    def cfg(self) -> ModelConfig:
        """The model's configuration."""
        return self._module.cfg

    def decode(
        self,
        tokens: Int32[Array, "B S"],
        positions: Int32[Array, "B S"],
        cache: Cache,
        pack: int | None = None,
    ) -> tuple[Float[Array, "B S D"], Cache]:
        """See `Transformer.decode`."""
        return self._module.decode(tokens, positions, cache, pack)

    def logits(self, hidden: Float[Array, "*B D"]) -> tuple[Float[Array, "*B V"], Float[Array, "*B"]]:
        """See `Transformer.logits`."""
        return self._module.logits(hidden)

    def queries(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B Q"]:
        """See `Transformer.queries`."""
        return self._module.queries(hidden)

    def beside(self, tree: _Tree) -> _Tree:
        """The arrays of `tree` on the devices of the parameters, whole on each: a compiled step returns them there, and
        would be compiled a second time for what came from elsewhere at first.
        """
        sharding = self._leaves[0].sharding
        if isinstance(sharding, jax.sharding.NamedSharding):
            return jax.device_put(
                tree, jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
            )
        return tree

    @property
    def _module(self) -> Transformer:
        return jax.tree.unflatten(self._structure.tree, self._leaves)


class _Structure:
    """A tree structure that is compared by identity."""

    def __init__(self, tree: Any):
        self.tree = tree


@functools.cache
def _interned(tree: Any) -> _Structure:
    """One object for equal structures, so that models of the same shape share compiled functions."""
    return _Structure(tree)
