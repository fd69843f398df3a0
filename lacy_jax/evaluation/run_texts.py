"""Texts written by a trained run, with the prompts, partner, gate and calibration that its config names."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from lacy_jax import dataset
from lacy_jax.cascade import (
    Boundary,
    CalibratedGate,
    Generation,
    GenerationStopped,
    Partner,
    Prompt,
    Standing,
    calibration_scores,
    fit_gate,
    gate_weights,
    generate,
    get_partner,
    read_prompts,
    write_generations,
)
from lacy_jax.cascade.partners.metering import Meter, MeteredPartner
from lacy_jax.config import changed, dataset_folder, reading_one_dataset
from lacy_jax.corpus import world_of
from lacy_jax.errors import DataError
from lacy_jax.evaluation.kept import Kept, key_of
from lacy_jax.labels.layout import subject_name
from lacy_jax.objectives import GATES, POLICIES, resolve_gate
from lacy_jax.run_files import SAMPLES_FOLDER
from lacy_jax.training.run import Run, load_run
from lacy_jax.typed_json import from_json

CALIBRATION_BATCHES = 4
FITTING_BATCHES = 16
SAMPLING_SEED = 0
"""Seed of every sample that an evaluation takes, independent of the training seed, so that all runs get the same ones."""


@dataclasses.dataclass(frozen=True)
class Written:
    """Texts, their file, and the partner's work for them.

    Attributes:
      meter: counts for all the texts, including those of an earlier call.
      before: number of texts that an earlier call had written.
    """

    texts: list[Generation]
    path: epath.Path
    meter: Meter
    before: int = 0


def samples_path(run: Run, gate: str, budget: float) -> epath.Path:
    """The default file for the texts of one setting: WORKDIR/samples/GATE-BUDGET.jsonl."""
    return run.workdir / SAMPLES_FOLDER / f"{gate}-{100 * budget:g}.jsonl"


def generate_texts(
    run: Run,
    config: ml_collections.ConfigDict,
    prompts: Sequence[Prompt],
    partner: Partner | None,
    *,
    out: epath.PathLike | None = None,
    scores: np.ndarray | None = None,
) -> Written:
    """Write one text per prompt with `config.generate`, and store them as JSONL.

    Finished batches are stored in OUT.partial.jsonl, with the partner's counts and standing, so that an interrupted call
    can go on from there.

    Args:
      run: a trained run.
      config: `generate.*`, `seed` and, for the calibration of the gate, the dataset's path are read.
      prompts: from `make_prompts`, or your own.
      partner: from `make_partner`; None = the model alone.
      out: the file; None = `samples_path`.
      scores: calibration scores of this run and gate; None = computed from validation text.

    Raises:
      ConfigError, DataError: see `cascade.generate`.
      GenerationStopped: the partner failed and `generate.on_partner_failure` is "stop"; the texts so far are in `out`
        with ".partial" added to its name.
      KeyboardInterrupt: says how many texts are stored.
    """
    options = config.generate
    gate = gate_of(run, config)
    budget = 0.0 if partner is None else options.budget
    path = epath.Path(out) if out else samples_path(run, gate if partner else "alone", budget)
    used: str | CalibratedGate = gate
    if "fit" in GATES[gate].needs:
        used = fitted_gate(run, config)
    if partner is not None and scores is None:
        scores = gate_calibration(run, config, used)
    kept = Kept(path)
    decided = [
        run.step,
        run.config.to_json(),
        options.to_dict(),
        config.seed,
        gate,
        partner.name if partner else None,
    ]
    about = key_of(*decided, None if scores is None else scores.tolist(), [[p.id, p.text] for p in prompts])
    done: list[Generation] = []
    meter, standing = Meter(), Standing()
    while record := kept.get(f"{about}-batch-{len(done)}"):
        done += [from_json(Generation, text) for text in record["texts"]]
        meter, standing = Meter(**record["meter"]), Standing(**record["standing"])
    before = len(done)

    def keep(new: list[Generation], now: Standing) -> None:
        texts = [text.to_json() for text in new]
        counted = {"meter": dataclasses.asdict(meter), "standing": dataclasses.asdict(now)}
        kept.put(f"{about}-batch-{len(done)}", {"texts": texts, **counted})
        done.extend(new)

    try:
        texts = generate(
            run.model,
            run.tokenizer,
            prompts,
            None if partner is None else MeteredPartner(partner, meter),
            gate=used,
            budget=options.budget,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=config.seed,
            batch_size=options.batch_size,
            calibration_scores=scores,
            on_partner_failure=options.on_partner_failure,
            done=tuple(done),
            standing=standing,
            keep=keep,
        )
    except GenerationStopped as stopped:
        write_generations(f"{path}.partial", stopped.generations)
        raise GenerationStopped(f"{stopped}; they are in {path}.partial", stopped.generations) from stopped
    except KeyboardInterrupt as interrupt:
        interrupt.args = (
            f"{len(done)} of {len(prompts)} texts are kept; run the same command again for the others",
        )
        raise
    write_generations(path, texts)
    kept.done()
    return Written(texts, path, meter, before)


def gate_of(run: Run, config: ml_collections.ConfigDict) -> str:
    """The gate that `config.generate.gate` names, with "auto" resolved for the run's policy."""
    return resolve_gate(config.generate.gate, POLICIES[run.config.objective.policy].uses_call)


def gate_calibration(
    run: Run, config: ml_collections.ConfigDict, gate: str | CalibratedGate
) -> np.ndarray | None:
    """Scores of the gate on validation text, from which its running quantile starts.

    None without a dataset, and for a gate without scores (the oracle, or one that is not fitted yet).
    """
    settings = _with_dataset(run, config)
    if settings is None or (isinstance(gate, str) and not GATES[gate].formula):
        return None
    if not dataset.read_metadata(settings.dataset.path).splits["valid"].documents:
        return None
    # As in generation, only a partner that returns single tokens is called inside words.
    boundary = None if config.generate.partner_reach == "token" else Boundary.of(run.tokenizer)
    known = gate if isinstance(gate, str) else gate_weights(gate)
    with contextlib.closing(_valid_batches(run, settings)) as batches:
        some = itertools.islice(batches, CALIBRATION_BATCHES)
        return calibration_scores(run.model, some, known, boundary=boundary)


def fitted_gate(run: Run, config: ml_collections.ConfigDict) -> CalibratedGate:
    """The gate "calibrated", fitted on validation text of the run's dataset.

    Raises:
      DataError: there is no dataset or no validation text, or nothing in it to learn from.
    """
    settings = _with_dataset(run, config)
    if settings is None:
        raise DataError(
            f"gate 'calibrated' is fitted on validation text, and {dataset_folder(config, run.workdir)} "
            "is not there: restore it, or choose another gate"
        )
    uses_call = POLICIES[run.config.objective.policy].uses_call
    with contextlib.closing(_valid_batches(run, settings)) as batches:
        return fit_gate(run.model, itertools.islice(batches, FITTING_BATCHES), uses_call)


def _valid_batches(run: Run, settings: ml_collections.ConfigDict) -> Any:
    return dataset.make_input(
        settings, split="valid", epochs=1, tokenizer_hash=run.tokenizer.hash, drop_remainder=False
    )


def make_prompts(run: Run, config: ml_collections.ConfigDict) -> list[Prompt]:
    """The prompts of `config.generate.prompts`, or `generate.num_prompts` prompts made from the corpus.

    For the synthetic world they are people of the corpus in a random order that is the same for every run and every
    `num_prompts`. For other corpora they are titles of validation documents, without a parenthesis at the end.

    Raises:
      DataError: the prompt file is missing or bad, or there is no dataset with titles.
    """
    options = config.generate
    if options.prompts:
        return read_prompts(options.prompts)
    if world := world_of(config.corpus):
        draw = np.random.default_rng(SAMPLING_SEED).permutation(config.corpus.people)
        people = draw[: options.num_prompts]
        return [Prompt(world.prompt(int(i)), f"person-{i}") for i in people]
    settings = _with_dataset(run, config)
    if settings is None:
        raise DataError(
            f"no prompts: give --prompt or --config.generate.prompts, or restore the dataset "
            f"{dataset_folder(config, run.workdir)}, whose titles would be used"
        )
    source = dataset.open_split(settings.dataset.path, "valid")
    prompts: list[Prompt] = []
    for i in range(len(source)):
        record = source[i]
        if len(prompts) == options.num_prompts:
            break
        if record.title:
            prompts.append(Prompt(subject_name(record.title), record.id))
    if not prompts:
        raise DataError(
            f"no prompts: no validation document of {settings.dataset.path} has a title; give --prompt"
        )
    return prompts


def make_partner(config: ml_collections.ConfigDict) -> Partner | None:
    """The partner of `config.generate.partner`; None for "none"."""

    def open_folder(where: str, context: int) -> Any:
        # Imports safetensors, tokenizers and gguf, so only when needed.
        from lacy_jax.export.import_hf import open_folder

        keep_compiled()
        return open_folder(pathlib.Path(where), context)

    return get_partner(
        config.generate.partner,
        reach=config.generate.partner_reach,
        world=world_of(config.corpus),
        load_run=load_run,
        open_folder=open_folder,
        rows=config.generate.batch_size,
    )


def keep_compiled() -> None:
    """Cache compiled programs on disk, unless JAX_COMPILATION_CACHE_DIR already names a folder.

    The programs of a Hugging Face model are the same for every run that uses it as a partner, and compiling them takes
    longer than a short job takes to write.
    """
    if jax.config.jax_compilation_cache_dir is None:
        base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(base / "lacy_jax" / platform.node()))
        jax.config.update(
            "jax_persistent_cache_min_compile_time_secs", 0.0
        )  # The many small ones take seconds too.


def _with_dataset(run: Run, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict | None:
    """The config with the path of the run's dataset filled in; None if the dataset does not exist (any more)."""
    if not dataset_folder(config, run.workdir).exists():
        return None
    return changed(reading_one_dataset(config, run.workdir), {"seed": SAMPLING_SEED})
