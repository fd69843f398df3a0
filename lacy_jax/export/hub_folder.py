"""A Hugging Face folder on disk: config.json, safetensors and the tokenizer with its special ids.

Several settings are stored twice in a folder. If two files differ, we either do what `transformers` does, or refuse the
difference by name: the text's first token is the one that the tokenizer's post-processor adds, its end tokens are those
of generation_config.json, and tokenizer.json takes precedence over tokenizer.model.
"""

from __future__ import annotations

import pathlib
from typing import Any

from lacy_jax import files
from lacy_jax.errors import DataError
from lacy_jax.export import provenance
from lacy_jax.export.extras import require
from lacy_jax.export.tensors import Reader
from lacy_jax.run_files import CHAT_TEMPLATE_FILE
from lacy_jax.tokenizer import Specials, Tokenizer, with_specials
from lacy_jax.tokenizer.json_tokenizer import added_ids, other_kind, pack, piece_ids
from lacy_jax.tokenizer.specials import specials_of

CONFIG = "config.json"


class HubFolder:
    """A folder with config.json.

    Attributes:
      name: of the folder. where: names config.json in errors.
      config: content of config.json.
      record: its own record, if it is one of our exports; else None.
      tokenizer: see `read_tokenizer`. chat_template: see `read_chat_template`.
      reader: its tensors.

    Raises:
      DataError: a file is missing or damaged, or two disagree. LacyError: a package is missing.
    """

    def __init__(self, folder: pathlib.Path, who: str):
        if not (folder / CONFIG).exists():
            raise DataError(f"{folder}: config.json not found: not a Hugging Face model folder")
        require("safetensors", who)
        self.path, self.name, self.where = folder, folder.name, str(folder / CONFIG)
        self.config = _object(folder / CONFIG, "Hugging Face config")
        self.record = provenance.read(folder)
        own = folder / "tokenizer.model"
        self.tokenizer = Tokenizer.load(own) if self.record else read_tokenizer(folder, self.config)
        self.chat_template = read_chat_template(folder)
        self.reader = Reader(folder)


def read_chat_template(folder: pathlib.Path) -> str:
    """chat_template.jinja, else that of tokenizer_config.json (of several, the one called "default"); "" if there is none.

    Raises:
      DataError: the file is not UTF-8.
    """
    own = folder / CHAT_TEMPLATE_FILE
    if own.exists():
        return _text(own)
    found = _tokenizer_config(folder).get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else ""


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text("utf-8")
    except ValueError as error:
        raise DataError(f"{path}: not UTF-8: {error}") from None


def read_tokenizer(folder: pathlib.Path, config: dict[str, Any]) -> Tokenizer:
    """tokenizer.json if it is byte-level BPE, as `transformers` reads it; else tokenizer.model (SentencePiece).

    Args:
      config: config.json.

    Raises:
      DataError: neither exists, both exist and differ, a special token is in neither, or it is of another kind.
    """
    path, model = folder / "tokenizer.json", folder / "tokenizer.model"
    content = path.read_text("utf-8") if path.exists() else ""
    other = other_kind(content, str(path)) if content else "neither tokenizer.model nor tokenizer.json found"
    if not other:
        return _byte_level(folder, content, config)
    if not model.exists():
        needed = (
            " is not supported, only byte-level BPE; give the SentencePiece tokenizer.model too"
            if content
            else ""
        )
        raise DataError(f"{path if content else folder}: {other}{needed}")
    if content:
        return _sentencepiece(folder, config, piece_ids(content, str(path)), _prefix(content, path))
    return _sentencepiece(folder, config, None, None)


def _prefix(content: str, path: pathlib.Path) -> tuple[int, ...]:
    """The tokens that the post-processor puts before a text."""
    before, after = added_ids(content, str(path))
    if after:
        raise DataError(
            f"{path}: its post-processor ends every text (id {after[0]}): nothing could go on from one"
        )
    return before


def _byte_level(folder: pathlib.Path, content: str, config: dict[str, Any]) -> Tokenizer:
    path = folder / "tokenizer.json"
    pieces = piece_ids(content, str(path))
    names = _named(folder, pieces, "tokenizer.json")
    ends = _ends(folder, config) or ([names["eos"]] if "eos" in names else [])
    bos = names.get("bos", _one(config.get("bos_token_id")))
    bos = ends[0] if bos is None and ends else bos
    if bos is None:
        raise DataError(f"{folder / CONFIG}: neither bos_token_id nor eos_token_id is given")
    eos = _first_named(ends or [bos], names.get("eos"))
    pad = names.get("pad", _one(config.get("pad_token_id")))
    specials = Specials(bos, eos, eos[0] if pad is None else pad, _prefix(content, path))
    return Tokenizer.from_bytes(pack(content, specials, str(path)), str(path))


def _sentencepiece(
    folder: pathlib.Path,
    config: dict[str, Any],
    others: dict[str, int] | None,
    prefix: tuple[int, ...] | None,
) -> Tokenizer:
    """tokenizer.model; `others` and `prefix`: the pieces and the first tokens of the tokenizer.json beside it, if any."""
    path = folder / "tokenizer.model"
    try:
        tokenizer = Tokenizer.load(path)
    except DataError as error:
        raise DataError(
            f"{path}: not a SentencePiece model (perhaps tiktoken's): tokenizer.json is needed"
        ) from error
    own = specials_of(tokenizer)
    pieces = {tokenizer.piece(token): token for token in range(tokenizer.vocab_size)}
    for piece, token in (others or {}).items():
        if token < tokenizer.vocab_size and pieces.get(piece) != token:
            raise DataError(
                f"{folder}: tokenizer.json and tokenizer.model disagree: id {token} is {piece!r} in one, "
                f"{tokenizer.piece(token)!r} in the other"
            )
    names = _named(folder, others or pieces, "tokenizer.json" if others else "tokenizer.model")
    if prefix is None:
        adds = _tokenizer_config(folder).get("add_bos_token", True)
        prefix = own.prefix if adds else ()
    eos = _first_named(_ends(folder, config) or list(own.eos), names.get("eos"))
    return with_specials(tokenizer, Specials(own.bos, eos, own.pad, prefix), str(folder))


def _ends(folder: pathlib.Path, config: dict[str, Any]) -> list[int]:
    """The ids at which `generate` of `transformers` ends a text: generation_config.json's, or else config.json's."""
    path = folder / "generation_config.json"
    generation = _object(path, "generation config") if path.exists() else {}
    found = generation.get("eos_token_id")
    found = config.get("eos_token_id") if found is None else found
    found = found if isinstance(found, list) else [found]
    return [token for token in found if _is_id(token)]


def _is_id(value: Any) -> bool:
    return type(value) is int and value >= 0


def _first_named(ends: list[int], named: int | None) -> tuple[int, ...]:
    """The end tokens of a text; the tokenizer's own comes first if it is one of them, since documents end with it."""
    ordered = sorted(ends, key=lambda token: token != named)
    return tuple(dict.fromkeys(ordered))


def _one(value: Any) -> int | None:
    """The id, the first of several ids, or None."""
    if isinstance(value, list):
        value = value[0] if value else None
    return value if _is_id(value) else None


def _tokenizer_config(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return _object(path, "tokenizer config") if path.exists() else {}


def _object(path: pathlib.Path, what: str) -> dict[str, Any]:
    """Content of a JSON file that holds one object."""
    value = files.read_json(path, what)
    if not isinstance(value, dict):
        raise DataError(f"{what} unreadable: {path}: no JSON object")
    return value


def _named(folder: pathlib.Path, pieces: dict[str, int], source: str) -> dict[str, int]:
    """{"bos": id, ..}: the special tokens that tokenizer_config.json (or special_tokens_map.json) names.

    Raises:
      DataError: the `pieces` of `source` lack one of them, or have it under another id.
    """
    config = _tokenizer_config(folder)
    listed = config.get("added_tokens_decoder") or {}
    for token, added in listed.items() if isinstance(listed, dict) else [("", listed)]:
        content = added.get("content") if isinstance(added, dict) else added
        if not isinstance(content, str) or not token.isdecimal():
            raise DataError(
                f"{folder}: tokenizer_config.json: added_tokens_decoder is no table of ids and their tokens"
            )
        if pieces.get(content, int(token)) != int(token):
            raise DataError(
                f"{folder}: tokenizer_config.json says that {content!r} is id {token}, {source} that it is {pieces[content]}"
            )
    path = folder / "special_tokens_map.json"
    older = _object(path, "special tokens") if path.exists() else {}
    found = {}
    for role in ("bos", "eos", "pad"):
        value = config.get(f"{role}_token", older.get(f"{role}_token"))
        content = value.get("content") if isinstance(value, dict) else value
        if content is None:
            continue
        if not isinstance(content, str) or content not in pieces:
            raise DataError(f"{folder}: {role}_token {content!r} is not in {source}")
        found[role] = pieces[content]
    return found
