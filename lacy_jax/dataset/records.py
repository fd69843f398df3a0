"""One record = one document: the bytes in ArrayRecord and their numpy form.

Records are `tf.train.Example` protos laid out by a TFDS `FeaturesDict`, so any TFDS reader understands them.
Reading goes past TFDS's generic decoder: it costs ten times the parsing itself.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float, Int32
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from lacy_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Record:
    """One labelled document as numpy arrays over its n tokens (bos and eos included).

    Attributes:
      tokens: ids.
      factual: token belongs to a factual span; False for bos and eos.
      nongrammatical: token is neither factual nor grammatical.
      judge: flagged by an LLM judge; None if not stored.
      reference_nll: nll of the token given what precedes it, under a reference model, nats; None if not
        stored.
      id, title: of the document.
    """

    tokens: Int32[np.ndarray, n]
    factual: Bool[np.ndarray, n]
    nongrammatical: Bool[np.ndarray, n]
    id: str = ""
    title: str = ""
    judge: Bool[np.ndarray, n] | None = None
    reference_nll: Float[np.ndarray, n] | None = None


def token_dtype(vocab_size: int) -> np.dtype:
    """Smallest of uint16 and uint32 that holds every id below `vocab_size`."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def get_features(vocab_size: int) -> tfds.features.FeaturesDict:
    """The TFDS feature specification of a record.

    `length` is the number of LABELS, stored apart from the tokens: the bits are packed eight to a byte, so
    without it labels that do not belong to these tokens could pass for theirs.
    """

    def array(dtype: np.dtype | type) -> tfds.features.Tensor:
        return tfds.features.Tensor(shape=(None,), dtype=np.dtype(dtype), encoding="bytes")

    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "title": tfds.features.Text(),
            "length": np.int64,
            "tokens": array(token_dtype(vocab_size)),
            "factual": array(np.uint8),
            "nongrammatical": array(np.uint8),
        }
    )


def encode_record(record: Record, vocab_size: int) -> bytes:
    """Serialise a record: the bytes that `get_features(vocab_size)` describes, the same on every call.

    TFDS's own serialiser writes the fields in an order that differs from process to process.

    Raises:
      DataError: labels and tokens differ in length.
    """
    n = len(record.tokens)
    for name in ("factual", "nongrammatical"):
        if len(getattr(record, name)) != n:
            raise DataError(
                f"document {record.id!r}: {len(getattr(record, name))} {name} labels for {n} tokens"
            )
    feature = {
        "id": _bytes(record.id.encode()),
        "title": _bytes(record.title.encode()),
        "length": tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[n])),
        "tokens": _bytes(record.tokens.astype(token_dtype(vocab_size)).tobytes()),
        "factual": _bytes(np.packbits(record.factual).tobytes()),
        "nongrammatical": _bytes(np.packbits(record.nongrammatical).tobytes()),
    }
    example = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=feature))
    return example.SerializeToString(deterministic=True)


def _bytes(value: bytes) -> tf_feature_pb2.Feature:
    return tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[value]))


def decode_record(data: bytes, vocab_size: int) -> Record:
    """Inverse of `encode_record`.

    Raises:
      ValueError: not a record, labels of another length than the tokens, or ids outside the vocabulary. The
        message is for the caller to complete with file and record number.
    """
    try:
        fields = tf_example_pb2.Example.FromString(data).features.feature
        length = fields["length"].int64_list.value[0]
        tokens = np.frombuffer(fields["tokens"].bytes_list.value[0], token_dtype(vocab_size)).astype(np.int32)
        packed = [
            np.frombuffer(fields[name].bytes_list.value[0], np.uint8)
            for name in ("factual", "nongrammatical")
        ]
        name, title = (fields[key].bytes_list.value[0].decode() for key in ("id", "title"))
    except Exception as error:  # the proto runtimes raise classes of their own, without a common base
        raise ValueError(f"not a record of this dataset ({error})") from error
    if len(tokens) != length or any(len(bits) != (length + 7) // 8 for bits in packed):
        raise ValueError(
            f"labels for {length} tokens ({[len(bits) for bits in packed]} bytes), but {len(tokens)} tokens"
        )
    if length and int(tokens.max()) >= vocab_size:
        raise ValueError(f"token id {int(tokens.max())} outside the vocabulary of {vocab_size}")
    factual, nongrammatical = (np.unpackbits(bits, count=length).view(bool) for bits in packed)
    return Record(tokens, factual, nongrammatical, name, title)
