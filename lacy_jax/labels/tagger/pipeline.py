"""The tagger as a plain spaCy pipeline: made from weights, and the weights of a pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lacy_jax.errors import DataError
from lacy_jax.labels.tagger.classes import CLASSES
from lacy_jax.labels.tagger.network import FEATURES, Shape, Weights

if TYPE_CHECKING:
    from spacy.language import Language


def pipeline_of(weights: Weights, shape: Shape, **meta: Any) -> Language:
    """A blank English pipeline with a `tagger` of these weights; `meta` goes into its meta.json."""
    import spacy

    nlp = spacy.blank("en")
    nlp.meta.update(spacy_version=">=3.8.0,<3.9.0", **meta)
    model = {
        "@architectures": "spacy.Tagger.v2",
        "tok2vec": {
            "@architectures": "spacy.Tok2Vec.v2",
            "embed": {
                "@architectures": "spacy.MultiHashEmbed.v2",
                "width": shape.width,
                "rows": list(shape.rows),
                "attrs": list(FEATURES),
                "include_static_vectors": False,
            },
            "encode": {
                "@architectures": "spacy.MaxoutWindowEncoder.v2",
                "width": shape.width,
                "depth": shape.depth,
                "window_size": 1,
                "maxout_pieces": shape.pieces,
            },
        },
    }
    tagger: Any = nlp.add_pipe("tagger", config={"model": model})
    for name in CLASSES:
        tagger.add_label(name)
    tagger.model.initialize(X=[nlp.make_doc("Text")], Y=[np.zeros((1, len(CLASSES)), np.float32)])
    tables = np.split(weights["table"], np.cumsum(shape.rows)[:-1])
    maxouts = [weights["embed"], *weights["layers"]]
    for node in tagger.model.walk():
        if node.name == "hashembed" and node.has_param("E"):
            node.set_param("E", tables.pop(0))
        elif node.name == "maxout":
            node.set_param("W", maxouts[0]["W"].reshape(shape.width, -1, maxouts[0]["W"].shape[1]))
            node.set_param("b", maxouts[0]["b"].reshape(shape.width, -1))
        elif node.name == "layernorm":
            layer = maxouts.pop(0)
            node.set_param("G", layer["G"])
            node.set_param("b", layer["B"])
        elif node.name == "softmax":
            node.set_param("W", weights["out"]["W"])
            node.set_param("b", weights["out"]["b"])
    return nlp


def weights_of(nlp: Language) -> tuple[Weights, Shape]:
    """Weights and sizes of a pipeline made by `pipeline_of`, or of one of the same architecture trained by spaCy.

    Raises:
      DataError: the pipeline has no such tagger.
    """
    tagger: Any = nlp.get_pipe("tagger") if "tagger" in nlp.pipe_names else None
    nodes: dict[str, list[Any]] = {}
    for node in tagger.model.walk() if tagger else ():
        nodes.setdefault(node.name, []).append(node)
    labels = tagger.labels if tagger else ()
    tables = [node.get_param("E") for node in nodes.get("hashembed", ()) if node.has_param("E")]
    maxouts = [
        {
            "W": np.ascontiguousarray(maxout.get_param("W").reshape(-1, maxout.get_dim("nI"))),
            "b": maxout.get_param("b").reshape(-1),
            "G": norm.get_param("G"),
            "B": norm.get_param("b"),
        }
        for maxout, norm in zip(nodes.get("maxout", ()), nodes.get("layernorm", ()))
    ]
    if tuple(labels) != CLASSES or len(tables) != len(FEATURES) or len(maxouts) < 2:
        raise DataError(
            f"pipeline {nlp.meta.get('name')!r} has no tagger of ours; make one with "
            "python -m lacy_jax.labels.tagger.train"
        )
    softmax = nodes["softmax"][0]
    width = tables[0].shape[1]
    pieces = [len(maxout["b"]) // width for maxout in maxouts]
    shape = Shape(
        len(CLASSES), tuple(len(table) for table in tables), width, len(maxouts) - 1, pieces[1], pieces[0]
    )
    weights = {
        "table": np.concatenate(tables),
        "embed": maxouts[0],
        "layers": maxouts[1:],
        "out": {"W": softmax.get_param("W"), "b": softmax.get_param("b")},
    }
    return weights, shape
