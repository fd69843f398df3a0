"""Records, one per document: their bytes in ArrayRecord and their numpy form.

Records are `tf.train.Example` protos laid out by a TFDS `FeaturesDict`, so any TFDS reader understands them.
We do not read them with TFDS's generic decoder, because it takes ten times as long as the parsing itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int32, Shaped
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from lacy_jax.errors import DataError

STORED_LABELS = ("factual", "nongrammatical")
"""Labels that every record holds, one bit per token. Extras are stored beside the records (`extras.py`)."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One labelled document as numpy arrays over its n tokens (bos and eos included).

    Attributes:
      tokens: ids.
      labels: name -> [n]: `STORED_LABELS` (False for bos and eos) and the dataset's extras. `objectives.TokenLabels`
        explains the names.
      id, title: the document's.
    """

    tokens: Int32[np.ndarray, n]
    labels: Mapping[str, Shaped[np.ndarray, n]]
    id: str = ""
    title: str = ""


def token_dtype(vocab_size: int) -> np.dtype:
    """Smallest of uint16 and uint32 that holds every id below `vocab_size`."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def get_features(vocab_size: int) -> tfds.features.FeaturesDict:
    """The TFDS feature specification of a record.

    `length` is the number of LABELS. It is stored because the bits are packed eight to a byte: without it, labels of
    other tokens could go unnoticed.
    """

    def array(dtype: np.dtype | type) -> tfds.features.Tensor:
        return tfds.features.Tensor(shape=(None,), dtype=np.dtype(dtype), encoding="bytes")

    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "title": tfds.features.Text(),
            "length": np.int64,
            "tokens": array(token_dtype(vocab_size)),
            **{name: array(np.uint8) for name in STORED_LABELS},
        }
    )


def encode_record(record: Record, vocab_size: int) -> bytes:
    """Serialise a record as `get_features(vocab_size)` describes; the bytes are the same on every call.

    TFDS's own serialiser writes the fields in an order that differs between processes.

    Raises:
      DataError: labels and tokens differ in length.
    """
    n = len(record.tokens)
    for name in STORED_LABELS:
        if len(record.labels[name]) != n:
            raise DataError(
                f"document {record.id!r}: {len(record.labels[name])} {name} labels for {n} tokens"
            )
    feature = {
        "id": _bytes(record.id.encode()),
        "title": _bytes(record.title.encode()),
        "length": tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[n])),
        "tokens": _bytes(record.tokens.astype(token_dtype(vocab_size)).tobytes()),
        **{name: _bytes(np.packbits(record.labels[name]).tobytes()) for name in STORED_LABELS},
    }
    example = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=feature))
    return example.SerializeToString(deterministic=True)


def _bytes(value: bytes) -> tf_feature_pb2.Feature:
    return tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[value]))


def decode_record(data: bytes, vocab_size: int) -> Record:
    """Inverse of `encode_record`.

    Raises:
      ValueError: not a record, labels of another length than the tokens, or ids outside the vocabulary. The
        caller adds file and record number to the message.
    """
    try:
        fields = tf_example_pb2.Example.FromString(data).features.feature
        length = fields["length"].int64_list.value[0]
        tokens = np.frombuffer(fields["tokens"].bytes_list.value[0], token_dtype(vocab_size)).astype(np.int32)
        packed = {name: np.frombuffer(fields[name].bytes_list.value[0], np.uint8) for name in STORED_LABELS}
        identifier, title = (fields[key].bytes_list.value[0].decode() for key in ("id", "title"))
    except Exception as error:  # The proto runtimes raise their own classes, without a common base.
        raise ValueError(f"not a record of this dataset ({error})") from error
    if len(tokens) != length or any(len(bits) != (length + 7) // 8 for bits in packed.values()):
        raise ValueError(
            f"labels for {length} tokens ({[len(bits) for bits in packed.values()]} bytes), but {len(tokens)} tokens"
        )
    if length and int(tokens.max()) >= vocab_size:
        raise ValueError(f"token id {int(tokens.max())} outside the vocabulary of {vocab_size}")
    labels = {name: np.unpackbits(bits, count=length).view(bool) for name, bits in packed.items()}
    return Record(tokens, labels, identifier, title)
