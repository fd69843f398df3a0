"""Building the shards of a dataset on Apache Beam: `lacy prepare --runner=DirectRunner|DataflowRunner|FlinkRunner|SparkRunner`.

One element is one shard, and `build_shard` builds it as without Beam, so the files are the same. The workers must
have lacy_jax installed and see the dataset's folder and the corpus under the same paths as this process: in a bucket, or on
a mounted file system. A restart builds only what is missing, on any runner.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import ml_collections
from etils import epath

from lacy_jax import config as config_lib
from lacy_jax import errors
from lacy_jax.dataset.shard import build_shard
from lacy_jax.errors import ConfigError, DataError, LacyError, one_line
from lacy_jax.registry import load_plugins

_OURS = re.compile(r"(?:lacy_jax\.errors\.)?\b(LacyError|ConfigError|DataError): (.+)")


def build_shards(
    config: ml_collections.ConfigDict,
    path: epath.Path,
    shards: Sequence[int],
    runner: str,
    options: Sequence[str] = (),
) -> None:
    """Build `shards` of the dataset in `path` as a Beam pipeline, and wait for it.

    Args:
      options: Beam's own flags, such as "--direct_num_workers=4".

    Raises:
      DataError: Beam is not installed, or a record is bad.
      ConfigError: no such runner, or an option that the runner does not know.
      LacyError: a worker failed; finished shards are kept.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise DataError(
            "prepare --runner: Apache Beam is not installed: pip install 'lacy_jax[cluster]', or leave --runner out"
        ) from None
    try:
        pipeline = beam.Pipeline(options=PipelineOptions([f"--runner={runner}", *options]))
    except (ValueError, SystemExit) as error:  # Beam's argument parser exits.
        raise ConfigError(f"prepare --runner={runner}: {one_line(error)}") from error
    text = config_lib.to_json(config)
    _ = (
        pipeline
        | "Shards" >> beam.Create(list(shards))
        | "Spread" >> beam.Reshuffle()  # Otherwise a runner may give all shards to one worker.
        | "Build" >> beam.Map(_build, text, str(path))
    )
    try:
        pipeline.run().wait_until_finish()
    except LacyError as error:  # Raised in this process, with Beam's own note appended.
        raise type(error)(_without_note(str(error))) from error
    except (
        Exception
    ) as error:  # An error of another process comes back as text in the runner's own exception.
        found = _OURS.findall(str(error))
        if found:
            name, message = found[-1]
            raise getattr(errors, name)(_without_note(message)) from error
        raise LacyError(
            f"prepare --runner={runner}: a worker failed: {one_line(error)}; finished shards are kept"
        ) from error


def _without_note(message: str) -> str:
    return re.sub(r"\s*\[while running .*", "", message, flags=re.DOTALL).strip()


def _build(shard: int, config_json: str, path: str) -> int:
    """One shard, in a worker of the runner."""
    config = config_lib.from_json(config_json)
    load_plugins(config.plugins)
    build_shard(config, epath.Path(path), shard, lambda documents, tokens: None)
    return shard
