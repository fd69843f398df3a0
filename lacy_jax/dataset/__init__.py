"""Labelled token datasets on disk, and the stream of packed batches that training reads."""

from etils import epy

# Imported on first use: the processes that build a dataset need neither JAX nor Grain, which take long to load.
with epy.lazy_api_imports(globals()):
    from lacy_jax.dataset.batch import Batch
    from lacy_jax.dataset.build import build_dataset
    from lacy_jax.dataset.extra_writer import write_extra
    from lacy_jax.dataset.metadata import Metadata, SplitCounts, read_metadata
    from lacy_jax.dataset.pipeline import InputPipeline, make_input
    from lacy_jax.dataset.records import Record
    from lacy_jax.dataset.source import RecordSource, open_split

__all__ = [
    "Batch",
    "InputPipeline",
    "Metadata",
    "Record",
    "RecordSource",
    "SplitCounts",
    "build_dataset",
    "make_input",
    "open_split",
    "read_metadata",
    "write_extra",
]
