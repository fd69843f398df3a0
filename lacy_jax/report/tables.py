"""The tables of a report, as plain values for the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lacy_jax.formatting import number, percent, short_percent
from lacy_jax.objectives import AUTO
from lacy_jax.report.run_record import RunRecord

_HIDDEN_FIELDS = ("name",)


def headline(results: Mapping[str, Any]) -> str:
    """One sentence with each method's share of true facts, best first."""
    shares = {name: f.get("true_fact_share") for name, f in results["runs"].items()}
    ranked = sorted((name for name in shares if shares[name] is not None), key=lambda name: -shares[name])
    if not ranked:
        return ""

    def figure(name: str) -> str:
        stated = results["runs"][name].get("stated_facts")
        return percent(shares[name]) + (f" of {stated}" if stated is not None else "")

    budget = results.get("budget")
    where = (
        "" if budget is None else f"At a call budget of {100 * budget:.3g}\N{NO-BREAK SPACE}% of the tokens, "
    )
    others = "; ".join(f"{name} {figure(name)}" for name in ranked[1:])
    sentence = f"{where}{ranked[0]} is right in {figure(ranked[0])} stated facts"
    return sentence + (f" ({others})." if others else ".")


def comparison(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row per method at the main budget, with formatted cells."""
    differences = (results.get("differences") or {}).get("rows") or {}
    rows = []
    for name, f in results["runs"].items():
        paired = differences.get(name) or {}
        alone, lent = (_share(f, "by_origin", origin) for origin in ("model", "partner"))
        rows.append(
            {
                "method": name,
                "gate": f.get("gate") or "",
                "share": percent(f.get("true_fact_share")),
                "share_ci": _interval(f.get("true_fact_share_ci"), percent),
                "paired": _points(paired.get("difference")),
                "paired_ci": _interval(paired.get("difference_ci"), _points),
                "stated": number(f.get("stated_facts_per_text")),
                "true": number(f.get("true_facts_per_text")),
                "true_ci": _interval(f.get("true_facts_per_text_ci"), number),
                "silent": _of(f.get("texts_without_facts"), f.get("texts")),
                "calls": percent(f.get("call_share")),
                "alone": alone,
                "lent": lent,
                "params": number(f.get("params")),
                "tokens": number(f.get("tokens")),
            }
        )
    return rows


def by_budget(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """True share and realised call share of each method at each budget; None with fewer than two budgets."""
    table = results.get("by_budget") or {}
    budgets = sorted(table, key=as_number)
    if len(budgets) < 2:
        return None
    rows = [
        (
            name,
            [
                (percent((table[b].get(name) or {}).get("true_fact_share")), _calls(table[b].get(name)))
                for b in budgets
            ],
        )
        for name in results["runs"]
    ]
    return {"budgets": [short_percent(as_number(b)) for b in budgets], "rows": rows}


def by_attribute(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """True share of each method for each kind of fact, with the number stated; None if not recorded."""
    methods = results["runs"]
    names = sorted({a for f in methods.values() for a in f.get("by_attribute") or {}})
    if not names:
        return None
    rows = []
    for attribute in names:
        cells = []
        for f in methods.values():
            cell = (f.get("by_attribute") or {}).get(attribute) or {}
            cells.append((cell.get("true_fact_share"), cell.get("stated", 0)))
        rows.append(
            (attribute.replace("_", " "), [(percent(share), stated, share) for share, stated in cells])
        )
    return {"methods": list(methods), "rows": rows}


def losses(records: Sequence[RunRecord]) -> list[dict[str, str]]:
    """Validation nll by class of token and on call masks, from `lacy evaluate`, else from the last validation."""
    rows = []
    for record in records:
        evaluation = record.evaluation or {}
        nll = evaluation.get("nll") or last_validation(record)
        if not nll:
            continue
        masks = evaluation.get("masks") or {}
        own, base = masks.get("own") or {}, masks.get("baseline") or {}
        rows.append(
            {
                "run": record.name,
                **{key: number(nll.get(key)) for key in ("all", "factual", "other", "called", "learned")},
                "own": _pair(own, "call_nll", "other_nll"),
                "baseline_on_own": _pair(own, "baseline_call_nll", "baseline_other_nll"),
                "on_baseline": _pair(base, "call_nll", "other_nll"),
            }
        )
    return rows


def by_kind(records: Sequence[RunRecord]) -> list[tuple[str, str, list[list[str]]]]:
    """(run, its own gate, rows of kind, tokens, wrong, recall, AUROC) for runs that were evaluated by kind of fact."""
    tables = []
    for record in records:
        kinds = (record.evaluation or {}).get("by_kind") or {}
        known = next((row.get("gates") or {} for row in kinds.values()), {})
        gate = next((name for name in AUTO.values() if name in known), "")
        if gate:
            rows = [
                [kind, number(row["tokens"]), percent(row["wrong"]), percent(row["gates"][gate]["recall"]),
                 number(row["gates"][gate]["auroc"])]
                for kind, row in kinds.items()
            ]  # fmt: skip
            tables.append((record.name, gate, rows))
    return tables


def run_summaries(records: Sequence[RunRecord]) -> list[dict[str, str]]:
    """Policy, length and last figures of each run."""
    rows = []
    for record in records:
        last = record.train[-1] if record.train else {}
        valid = record.valid[-1] if record.valid else {}
        rows.append(
            {
                "run": record.name,
                "policy": record.policy or "–",
                "steps": number(last.get("step")),
                "tokens": number(last.get("total_tokens")),
                "learned": number(last.get("total_learned_tokens")),
                "loss": number(last.get("loss")),
                "valid": number(valid.get("nll")),
                "call_rate": percent(last.get("realised_call_rate")),
                "factual_rate": percent(last.get("factual_rate")),
                "speed": number(last.get("tokens_per_s")),
            }
        )
    return rows


def config_differences(records: Sequence[RunRecord]) -> dict[str, Any] | None:
    """Config fields in which the runs differ; None with fewer than two configs, or if they are equal."""
    configs = {record.name: _flatten(record.config) for record in records if record.config}
    fields = sorted({field for flat in configs.values() for field in flat})
    rows = []
    for field in fields:
        values = [str(flat.get(field, "–")) for flat in configs.values()]
        if len(set(values)) > 1 and field not in _HIDDEN_FIELDS:
            rows.append((field, values))
    return {"runs": list(configs), "rows": rows} if len(configs) > 1 and rows else None


def environments(records: Sequence[RunRecord]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(run, [(name, value)]) for the last session of each run."""
    tables = []
    for record in records:
        if not record.sessions:
            continue
        session = record.sessions[-1]
        device, git, packages = (session.get(k) or {} for k in ("devices", "git", "packages"))
        facts = [
            ("started", session.get("started")),
            ("sessions", len(record.sessions)),
            ("wall time", ", ".join(f"{name} {percent(share)}" for name, share in record.goodput.items())),
            ("devices", " ".join(str(device[k]) for k in ("count", "kind") if k in device)),
            ("lacy_jax", session.get("lacy_jax")),
            ("source", f"{git.get('commit', '')}{' with changes' if git.get('changed') else ''}"),
            ("Python", session.get("python")),
            ("platform", session.get("platform")),
            ("packages", ", ".join(f"{name} {version}" for name, version in packages.items() if version)),
        ]
        tables.append((record.name, [(what, str(value)) for what, value in facts if value]))
    return tables


def commands(records: Sequence[RunRecord]) -> list[str]:
    """The command lines that the runs were started with, in order, each once."""
    return list(dict.fromkeys(str(s["command"]) for r in records for s in r.sessions if s.get("command")))


def last_validation(record: RunRecord) -> dict[str, Any]:
    """nll by class of token at the last validation during training."""
    last = record.valid[-1] if record.valid else {}
    names = {"all": "nll", **{key: f"nll_{key}" for key in ("factual", "other", "called", "learned")}}
    return {key: last.get(name) for key, name in names.items() if last.get(name) is not None}


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _share(figures: Mapping[str, Any], table: str, row: str) -> str:
    """ "83.1 % of 240", or a dash."""
    cell = (figures.get(table) or {}).get(row) or {}
    return f"{percent(cell['true_fact_share'])} of {cell['stated']}" if cell.get("stated") else "–"


def _interval(ends: Any, show: Any) -> str:
    return f"{show(ends[0])} to {show(ends[1])}" if isinstance(ends, (list, tuple)) and len(ends) == 2 else ""


def _points(value: float | None) -> str:
    """A difference of shares in percentage points, signed."""
    return "–" if value is None else f"{100 * value:+.1f}"


def _pair(mask: Mapping[str, Any], first: str, second: str) -> str:
    return f"{number(mask[first])} / {number(mask[second])}" if mask.get(first) is not None else "–"


def _of(part: Any, whole: Any) -> str:
    return "–" if part is None or whole is None else f"{part} of {whole}"


def _calls(figures: Mapping[str, Any] | None) -> str:
    return percent((figures or {}).get("call_share"))


def as_number(text: Any) -> float:
    """A number in text, for sorting; anything else sorts last."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return float("inf")
