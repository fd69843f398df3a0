"""Partners by name: `config.generate.partner`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lacy_jax.cascade.fact_database import FactDatabase
from lacy_jax.cascade.partners.base import Partner, check_reach
from lacy_jax.cascade.partners.checkpoint import CheckpointPartner
from lacy_jax.cascade.partners.database import DatabasePartner
from lacy_jax.cascade.partners.documents import DocumentPartner
from lacy_jax.cascade.partners.server import CompletionsPartner
from lacy_jax.cascade.partners.world import FactTablePartner
from lacy_jax.cascade.passages import open_index
from lacy_jax.clients.completions import CompletionsClient
from lacy_jax.corpus import World
from lacy_jax.errors import ConfigError


def get_partner(
    spec: str,
    *,
    reach: str = "span",
    world: World | None = None,
    load_run: Callable[[str], Any] | None = None,
    open_folder: Callable[[str, int], Any] | None = None,
    rows: int = 16,
) -> Partner | None:
    """The partner that `config.generate.partner` names.

    Args:
      spec: "none"; "world"; "checkpoint:RUN_DIR"; "hf:FOLDER#CONTEXT", a local Hugging Face folder (without #CONTEXT
        as much as the model knows, at most 4,096 tokens); "http://HOST:PORT/v1#MODEL", a completions server (https
        too; without #MODEL the first it lists); "database:FACTS.db" (`FactDatabase.build`); "documents:PATH",
        a JSONL corpus or a folder of `PassageIndex.save`, extractive; "documents:PATH,SPEC", the same with
        the passages shown to the partner SPEC.
      reach: how much one call may return: token, word or span.
      world: the synthetic world, for "world".
      load_run: opens a run directory; what it returns has `model` and `tokenizer`.
      open_folder: opens a Hugging Face folder with a context (0 = its own); what it returns has `model` and `tokenizer`.
      rows: texts a checkpoint partner keeps in its KV cache, requests a server gets at a time; the batch size
        of generation.

    Raises:
      ConfigError: an unknown partner or reach, or one that this corpus cannot have.
      DataError: documents or a database that are missing or damaged.
    """
    check_reach(reach)
    kind, _, where = spec.partition(":")
    if spec == "none":
        return None
    if spec == "world":
        if world is None:
            raise ConfigError(
                "config.generate.partner = 'world': only runs on corpus.kind = 'world' have a fact table"
            )
        return FactTablePartner(world, reach)
    if kind in ("checkpoint", "hf") and where:
        found = _opened(spec, kind, where, load_run, open_folder)
        return CheckpointPartner(found.model, found.tokenizer, reach, rows=rows, name=spec)
    if kind in ("http", "https"):
        url, _, model = spec.partition("#")
        return CompletionsPartner(CompletionsClient(url, model, concurrency=rows), reach)
    if kind == "database" and where:
        return DatabasePartner(FactDatabase(where), reach)
    if kind == "documents" and where:
        path, comma, behind = where.partition(",")
        through = (
            get_partner(
                behind, reach=reach, world=world, load_run=load_run, open_folder=open_folder, rows=rows
            )
            if comma
            else None
        )
        return DocumentPartner(open_index(path), reach, through=through)
    raise ConfigError(
        f"config.generate.partner = {spec!r}: expected none, world, checkpoint:RUN_DIR, hf:FOLDER, http://HOST:PORT/v1#MODEL, "
        "documents:PATH, documents:PATH,PARTNER or database:FILE"
    )


def _opened(
    spec: str,
    kind: str,
    where: str,
    load_run: Callable[[str], Any] | None,
    open_folder: Callable[[str, int], Any] | None,
) -> Any:
    """What has the `model` and `tokenizer` of a run or of a Hugging Face folder."""
    if kind == "checkpoint" and load_run is not None:
        return load_run(where)
    if kind == "hf" and open_folder is not None:
        folder, _, context = where.partition("#")
        if context and not (context.isdecimal() and int(context)):
            raise ConfigError(f"config.generate.partner = {spec!r}: #{context} is no number of tokens")
        return open_folder(folder, int(context or 0))
    raise ConfigError(f"config.generate.partner = {spec!r}: it cannot be opened here")
