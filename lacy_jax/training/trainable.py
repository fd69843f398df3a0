"""Which parameters are trained, and at which share of the learning rate, by patterns of parameter names.

A parameter is named by its path: "embedding", "call", "final_norm.scale". A layer's parameter also has the layer's number,
counted from the first or the last: "blocks.3.query" is "blocks.-1.query" in a model of four layers. Patterns are shell
patterns (`fnmatch`): "blocks.-[12].*", "*norm*".

Parameters that are not trained have no gradient, no moments and no average, and layers below the first trained one have
no backward pass, unless the embedding below them is trained. The layers of a parameter are one array, so the trained
layers must be the last ones; the array is cut there.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lacy_jax.errors import ConfigError
from lacy_jax.models import ModelConfig, attention_flops_per_token, flops_per_token

Path = tuple[str, ...]


class Trainable:
    """The trained part of a tree of parameters.

    Args:
      config: dimensions of the model.
      abstract: its parameters, nested dict of `jax.ShapeDtypeStruct`.
      axes: the same, with a tuple of logical axis names per parameter.
      patterns: config field `train.trainable`; empty = all.

    Attributes:
      first_layer: the first layer with a trained parameter; L if there is none.
      count: number of trained parameters.
      everything: whether all parameters are trained.

    Raises:
      ConfigError: a pattern matches no parameter, or the trained layers of a parameter are not its last ones.
    """

    def __init__(self, config: ModelConfig, abstract: Any, axes: Any, patterns: Sequence[str] = ()):
        self._config, self._sizes = config, {path: leaf.shape for path, leaf in _leaves(abstract)}
        stacked = {path for path, names in _leaves(axes) if "layers" in names}
        self._names = {path: _names(path, config.n_layers if path in stacked else 0) for path in self._sizes}
        self._starts = {}
        for path, matched in self._matches("train.trainable", patterns or ("*",)).items():
            start = matched.index(True) if any(matched) else len(matched)
            if not all(matched[start:]):
                raise ConfigError(
                    f"config.train.trainable = {tuple(patterns)!r}: {'.'.join(path)} is trained in layers "
                    f"{', '.join(str(i) for i, own in enumerate(matched) if own)} of {len(matched)}; the trained layers must be "
                    "the last ones"
                )
            if any(matched):
                self._starts[path] = start
        self.first_layer = min(
            (start for path, start in self._starts.items() if path in stacked), default=config.n_layers
        )
        self.count = sum(math.prod(self._shape(path)) for path in self._starts)
        self.everything = self.count == sum(map(math.prod, self._sizes.values()))

    def select(self, params: Any) -> Any:
        """The trained part of a tree of parameters: without the others, stacked ones cut at their first trained layer."""
        if not self.everything and isinstance(_leaves(params)[0][1], jax.ShapeDtypeStruct):
            return jax.eval_shape(self.select, params)
        return self.pick(params, lambda leaf, start: leaf[start:] if start else leaf)

    def pick(self, tree: Any, cut: Callable[[Any, int], Any] = lambda leaf, _: leaf) -> Any:
        """The same for a tree with other leaves (axes, shardings); `cut` gets each leaf and its first trained layer."""
        if self.everything:
            return tree
        return _map(lambda path, leaf: cut(leaf, self._starts[path]) if path in self._starts else None, tree)

    def join(self, params: Any, trained: Any) -> Any:
        """The whole tree with its trained part replaced."""
        if self.everything:
            return trained
        new = dict(_leaves(trained))

        def joined(path: Path, old: Any) -> Any:
            start = self._starts.get(path)
            if not start:
                return old if start is None else new[path]
            return jnp.concatenate([old[:start], new[path]])

        return _map(joined, params)

    def rates(self, scales: Sequence[tuple[str, float]]) -> Any:
        """Shares of the learning rate, as a tree like the trained parameters; None if all are 1.

        Args:
          scales: config field `optimizer.lr_scale`: (pattern, share); the last match counts.

        Raises:
          ConfigError: a pattern matches no parameter, or a share is not positive.
        """
        if not scales:
            return None
        values = {path: np.ones(len(names), np.float32) for path, names in self._names.items()}
        for pattern, share in scales:
            if not share > 0:
                raise ConfigError(
                    f"config.optimizer.lr_scale: {pattern!r} has {share!r}: must be positive; to freeze parameters, use "
                    "config.train.trainable"
                )
            for path, matched in self._matches("optimizer.lr_scale", (pattern,)).items():
                values[path][np.array(matched)] = share

        def one(path: Path, shape: tuple[int, ...]) -> np.ndarray:
            own = values[path][self._starts[path] :]
            return own.reshape(-1, *[1] * (len(shape) - 1)) if len(self._names[path]) > 1 else own[0]

        return _tree({path: one(path, self._sizes[path]) for path in self._starts})

    def flops_per_token(self, seq_len: int) -> float:
        """Model FLOPs of training per token, like `models.flops_per_token`, but without those that frozen parameters save.

        The forward pass is a third. In the backward pass, gradients of activations go down to the first layer with a
        trained parameter in or below it, and gradients of weights are computed only for trained ones.
        """
        cfg, whole = self._config, flops_per_token(self._config, seq_len)
        if self.everything:
            return whole
        matrices = sum(
            math.prod(self._shape(path))
            for path in self._starts
            if path[0] == "blocks" and len(self._shape(path)) > 2 and "bias" not in path[-1]
        )
        head = cfg.vocab_size * cfg.d_model
        head_trained = (("embedding",) if cfg.tie_head else ("head",)) in self._starts
        below = {("embedding",), ("position",)} & set(self._starts)
        layers = cfg.n_layers if below else cfg.n_layers - self.first_layer
        each = whole / 3 - 2 * (head + cfg.d_model)  # Forward, of all layers.
        activations = (
            each * layers / cfg.n_layers + attention_flops_per_token(cfg, seq_len) * layers / cfg.n_layers
        )
        if layers or any(path[0] == "final_norm" for path in self._starts):
            activations += 2 * (head + cfg.d_model)
        weights = 2 * (matrices + head * head_trained + cfg.d_model * (("call",) in self._starts))
        return whole / 3 + activations + weights

    def _shape(self, path: Path) -> tuple[int, ...]:
        first, *others = self._sizes[path] or (1,)
        return (first - self._starts[path], *others)

    def _matches(self, field: str, patterns: Sequence[str]) -> dict[Path, list[bool]]:
        """For each parameter, and each of its layers if it has any, whether a pattern matches one of its names."""
        for pattern in patterns:
            every = [name for names in self._names.values() for either in names for name in either]
            if not fnmatch.filter(every, pattern):
                near = difflib.get_close_matches(pattern, every, n=1)
                raise ConfigError(
                    f"config.{field}: {pattern!r} matches no parameter"
                    + (f"; did you mean {near[0]!r}?" if near else f", such as {every[0]!r} or {every[-1]!r}")
                )
        return {
            path: [any(fnmatch.fnmatchcase(n, p) for n in either for p in patterns) for either in names]
            for path, names in self._names.items()
        }


def _names(path: Path, layers: int) -> list[tuple[str, ...]]:
    """The names of a parameter: one tuple of equivalent names per layer, or a single tuple without layers."""
    if not layers:
        return [(".".join(path),)]
    return [
        tuple(".".join((path[0], str(number), *path[1:])) for number in (layer, layer - layers))
        for layer in range(layers)
    ]


def _leaves(tree: Any, path: Path = ()) -> list[tuple[Path, Any]]:
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [found for key, value in tree.items() for found in _leaves(value, (*path, key))]


def _map(fn: Callable[[Path, Any], Any], tree: Any) -> Any:
    """`tree` with each leaf replaced by fn(path, leaf); leaves that become None are left out."""
    return _tree({path: new for path, leaf in _leaves(tree) if (new := fn(path, leaf)) is not None})


def _tree(leaves: dict[Path, Any]) -> Any:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree
