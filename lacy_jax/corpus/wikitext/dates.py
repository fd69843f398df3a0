"""Templates that show a date, a span of years or a century."""

from __future__ import annotations

from collections.abc import Sequence

from lacy_jax.corpus.wikitext.templates import Arguments, Render, by_name

MONTHS = "January February March April May June July August September October November December".split()
_FRENCH = "janvier février mars avril mai juin juillet août septembre octobre novembre décembre".split()


def written_date(
    year: str, month: str = "", day: str = "", *, day_first: bool = False, months: Sequence[str] = MONTHS
) -> str:
    """A date in words; parts that are missing are left out."""
    name = months[int(month) - 1] if month.isdecimal() and 1 <= int(month) <= 12 else month
    day = str(int(day)) if day.isdecimal() else day
    year = year.lstrip("0") or year
    if not name:
        return year
    if not day:
        return f"{name} {year}".strip()
    return f"{day} {name} {year}".strip() if day_first else f"{name} {day}{f', {year}' if year else ''}"


def _date(args: Arguments) -> str:
    """{{birth date|1956|5|7|df=y}}: "7 May 1956"; arguments after the day (death dates have a birth date) are left out."""
    if not args.at(1).lstrip("-").isdecimal():
        return args.at(1)  # A date in words.
    first = args.get("df", "dmy").lower() in ("y", "yes", "1", "true")
    return written_date(args.at(1), args.at(2), args.at(3), day_first=first)


def _as_of(args: Arguments) -> str:
    begun = "since" if args.get("since") else "as of"
    date = (
        args.get("alt")
        or f"{begun if args.get('lc') else begun.capitalize()} {written_date(args.at(1), args.at(2), args.at(3), day_first=True)}"
    )
    return date + args.get("post")


def _circa(args: Arguments) -> str:
    years = args.given()
    return f"c. {years[0]}" + (f" – c. {years[1]}" if len(years) > 1 else "") if years else "c."


def _span(before: str) -> Render:
    return lambda args: f"{before} {'–'.join(args.given())}".strip()


def _old_style(args: Arguments) -> str:
    return f"{args.at(1)} [O.S. {args.at(3)}] {args.at(2)}".strip()


def _french_date(args: Arguments) -> str:
    parts = args.given()
    if len(parts) == 1 or not parts:
        return "".join(parts)
    day, month, *rest = parts
    day = "1er" if day == "1" else day
    name = _FRENCH[int(month) - 1] if month.isdecimal() and 1 <= int(month) <= 12 else month
    return " ".join([day, name, *[word for word in rest[:1] if word.lstrip("-").isdecimal()]])


def _century(suffix: str) -> Render:
    """French {{s|XIX|e}}: "XIXe siècle"."""

    def render(args: Arguments) -> str:
        number = f"{args.at(1)}{args.at(2) or ('er' if args.at(1) == 'I' else 'e')}"
        return f"{number} siècle{suffix}"

    return render


DATES: dict[str, Render] = by_name(
    {
        "birth_date bda birth_date_and_age birth_date2 dob death_date death_date_and_age dda start_date start_date_and_age end_date film_date release_date dts dtsa date_table_sorting dtsx launch_date": _date,
        "as_of asof": _as_of,
        "circa c. ca. c": _circa,
        "floruit fl. fl": _span("fl."),
        "reign r.": _span("r."),
        "born_in b.": _span("b."),
        "oldstyledate": _old_style,
        "oldstyledatedy oldstyledatenoyear": lambda args: (
            f"{args.at(1)} {args.at(2)} [O.S. {args.at(3)}]".strip()
        ),
        "date date- date_de_naissance date_de_naissance- date_de_décès date_de_décès- dn": _french_date,
        "s siècle": _century(""),
        "s- s-c": lambda args: _century("")(args).removesuffix(" siècle"),
        "-s": _century(" av. J.-C."),
        "sav": _century(" av. J.-C."),
        "e_siècle": lambda args: f"{args.at(1)}e siècle",
    }
)
"""Renders by the names of their templates."""
