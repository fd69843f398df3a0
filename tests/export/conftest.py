"""Run directories of small random models, and a byte-level tokenizer."""

from __future__ import annotations

import pathlib

import pytest
from export_small import TEXTS, make_config, random_params, tokenizer


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory):
    """make_run(**model fields) -> run directory; made once per set of fields. Tests must not write to it."""
    from lacy_jax.export.run_directory import write_run

    made: dict[str, pathlib.Path] = {}

    def make(**model: object) -> pathlib.Path:
        key = repr(sorted(model.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("run")
            config = make_config(**model)
            write_run(folder, config, tokenizer(), random_params(config, tokenizer().vocab_size), step=3)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def byte_level() -> str:
    """A tokenizer.json of byte-level BPE with 280 ids, as GPT-2's is made; 0 is <|endoftext|>."""
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend.to_str()
