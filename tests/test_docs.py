"""What README.md and docs/ name is there: commands and their options, config fields, paths, modules, make targets, links."""

from __future__ import annotations

import argparse
import importlib.util
import pathlib
import pkgutil
import re
import subprocess

import pytest
from docs_commands import blocks, commands

from lacy_jax import cli
from lacy_jax.config import flatten, get_default_config
from lacy_jax.run_files import TOKENIZER_FILE

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FIELDS = set(flatten(get_default_config()))
GROUPS = {field.split(".")[0] for field in FIELDS if "." in field}
ROOMS = {path.name for path in (ROOT / "lacy_jax").iterdir() if path.is_dir()}
FILE = r"(?:py|md|sh|txt|cfg|toml|yml|html|js|svg|jsonl?|xz|safetensors)"

pytestmark = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def names(text: str) -> list[str]:
    """What stands in backticks outside code blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def verbs() -> dict[str, argparse.ArgumentParser]:
    action = next(a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def options_of(verb: argparse.ArgumentParser) -> set[str]:
    """The options of a verb, with those that it adds only once it is asked for."""
    if verb.late:
        verb.late(verb)
    return {option for action in verb._actions for option in action.option_strings}


def test_commands_parse(page, capsys):
    wrong = []
    for command in commands(page.read_text()):
        if (
            command[0] != "lacy" or command[1] == "VERB" or command[1].endswith(":")
        ):  # The last: what it says.
            continue
        words = [word for word in command[1:] if word not in ("...", "…")]
        if ">" in words:
            words = words[: words.index(">")]
        try:
            cli._parser().parse_args([word for word in words if not word.startswith("--config.")])
        except SystemExit:
            said = capsys.readouterr().err.strip().splitlines()[-1]
            if not ("are required" in said and len(words) < len(command) - 1):  # "..." stands for them
                wrong.append((" ".join(command), said))
    assert not wrong


def test_verbs_and_options_named_in_sentences_exist(page):
    known = verbs()
    allowed = {name: options_of(verb) for name, verb in known.items()}
    wrong = []
    for name in names(page.read_text()):
        words = name.split()
        if words[0] == "lacy" and len(words) > 1 and words[1] != "VERB":
            flags = [re.split(r"[=|]", w)[0] for w in words[2:] if w.startswith("--")]
            if words[1] not in known or not allowed[words[1]].issuperset(
                f for f in flags if not f.startswith("--config.")
            ):
                wrong.append(name)
    assert not wrong


def test_config_fields_exist(page):
    text = page.read_text()
    named = set(re.findall(r"--config\.([a-z_]+(?:\.[a-z0-9_]+)?)=", text))
    named |= {m for m in re.findall(r"\bconfig\.([a-z]+\.[a-z0-9_]+)", text) if m.split(".")[0] in GROUPS}
    for name in names(text):
        match = re.match(r"([a-z_]+)\.([a-z0-9_]+)(?= *=|$)", name)
        if match and match[1] in GROUPS and not _is_file(name):
            named.add(match[0])
    assert not named - FIELDS - {"field", TOKENIZER_FILE}


def test_paths_exist(page):
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = tracked.stdout.splitlines()
    text = page.read_text()
    named = {name for name in names(text) if _is_file(name)}
    named |= {w for c in commands(text) for w in c if re.fullmatch(r"[\w./-]+\.(?:py|sh)(?:[:,].*)?", w)}
    tops = {file.split("/")[0] for file in files} | ROOMS
    wrong = []
    for name in named:
        path = re.split(r"[:,#]", name)[0].removeprefix("./").rstrip("/")
        there = (page.parent / path).exists() or f"/{path}/" in "".join(f"/{file}/" for file in files)
        ours = path.split("/")[0] in tops if "/" in path else path.endswith((".py", ".sh"))
        if ours and not there:
            wrong.append(name)
    assert not wrong


def _is_file(name: str) -> bool:
    return bool(re.fullmatch(rf"[\w./-]+\.{FILE}", name) or re.fullmatch(r"[\w.-]+(?:/[\w.-]+)+/?", name))


def test_modules_and_their_names_exist(page):
    text = page.read_text()
    found = set(re.findall(r"\blacy_jax(?:\.\w+)+", "\n".join([*names(text), *blocks(text)])))
    found |= {
        f"{module}.{name.strip()}"
        for module, listed in re.findall(r"from (lacy_jax[\w.]*) import ([\w, ]+)", text)
        for name in listed.split(",")
    }
    wrong = []
    for name in found - {"lacy_jax.plugins"}:  # The group of entry points.
        try:
            if importlib.util.find_spec(name) is None:
                pkgutil.resolve_name(name)
        except ModuleNotFoundError:
            try:
                pkgutil.resolve_name(name)
            except (AttributeError, ImportError):
                wrong.append(name)
        except (AttributeError, ImportError):
            wrong.append(name)
    assert not wrong


def test_make_targets_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    named = {c[1] for c in commands(text) if c[0] == "make" and len(c) > 1 and not c[1].startswith("-")}
    named |= {m[1] for name in names(text) if (m := re.fullmatch(r"make ([\w-]+)", name))}
    assert not named - targets


def test_links_resolve(page):
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", page.read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            wrong.append(link)
    assert not wrong


def _anchors(page: pathlib.Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[`*\[\]]|\(\S+\)", "", title).lower() for title in titles)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title)).strip("-") for title in plain}
