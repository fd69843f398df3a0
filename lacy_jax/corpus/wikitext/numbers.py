"""Templates that show a number: as the language writes it, with its unit, as a fraction, a power or an amount of money."""

from __future__ import annotations

import re

from lacy_jax.corpus.units import unit
from lacy_jax.corpus.wikitext.convert import convert
from lacy_jax.corpus.wikitext.templates import Arguments, Render, by_name

_UP = str.maketrans("0123456789+-−()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁽⁾ⁿ")


def raised(text: str) -> str:
    """A number above the line in the characters for it, "10⁶"; other text as it is."""
    return text.translate(_UP) if re.fullmatch(r"[-−+]?\d+[-−+]?|[-−+]", text) else text


def _formatnum(args: Arguments) -> str:
    text = args.at(1) or args.get("nombre", "number")
    return text.replace(",", "") if args.at(2) in ("R", "NOSEP") else args.number(text)


def _number_of(args: Arguments) -> str:
    """French {{unité|1300|km}}: "1 300 km"."""
    number = args.at(1)
    plain = number.replace(" ", "").replace(",", ".")
    if re.fullmatch(r"[-−]?\d{5,}", plain):
        number = f"{int(plain.replace('−', '-')):,}".replace(",", " ")
    parts = [number]
    for index in range(2, len(args.positional) + 1, 2):
        power = args.at(index + 1)
        parts.append(args.at(index) + ("" if power in ("", "1") else raised(power)))
    exponent = args.get("e")
    if exponent:
        parts.insert(1, f"× 10{raised(exponent)}")
    return " ".join(filter(None, parts))


def _fraction(args: Arguments) -> str:
    parts = args.given()
    if len(parts) == 1:
        return f"1/{parts[0]}"
    return "/".join(parts) if len(parts) == 2 else f"{parts[0]} {parts[1]}/{parts[2]}" if parts else "/"


def _value(args: Arguments) -> str:
    """{{val|1.5|0.1|e=6|u=km}}: "1.5±0.1×10⁶ km"."""
    number = args.number(args.at(1)) or args.at(1)
    second, third = args.at(2), args.at(3)
    if second.startswith("("):
        number += second
    elif second and third and not third[:1].isdecimal():
        number += f" +{second.lstrip('+')} {third.replace('-', '−')}"
    elif second:
        number += (
            f"±{second}" if re.fullmatch(r"[\d.,]+", second) else f" {second} {args.number(third)}".rstrip()
        )
    if args.get("e"):
        number += f"×10{raised(args.get('e'))}"
    symbol = args.get("u", "ul")
    per = args.get("up", "upl")
    of = unit(symbol)
    shown = f"{of.symbol if of else symbol}{f'/{per}' if per else ''}"
    return f"{args.get('p')}{number}{args.get('s')}{args.get('end')}{f' {shown}' if shown.strip() else ''}"


def _power(args: Arguments) -> str:
    return f"×10{raised(args.at(1))}" if args.at(1) else "e"


def _gaps(args: Arguments) -> str:
    symbol = args.get("u")
    return f"{args.get('lhs')}{''.join(args.given())}{'×10' + raised(args.get('e')) if args.get('e') else ''}{f' {symbol}' if symbol else ''}"


def _nuclide(args: Arguments) -> str:
    return "-".join(args.given()[:2])


def _currency(mark: str) -> Render:
    return lambda args: f"{mark}{args.number(args.at(1))}" if args.at(1) else mark


def _after_currency(args: Arguments) -> str:
    return f"{args.at(1)} {args.at(2) or 'EUR'}".strip()


def _gauge(args: Arguments) -> str:
    match = re.fullmatch(r"([\d.]+)\s*(mm|m|cm|in|ft)", args.at(1))
    return (
        convert([match[1], match[2], *(["in"] if match[2] == "mm" else [])], {"abbr": "on"})
        if match
        else args.at(1)
    )


def _ordinal(number: str) -> str:
    ends = {"1": "st", "2": "nd", "3": "rd"}
    teen = number[-2:-1] == "1"
    return f"{number}{'th' if teen else ends.get(number[-1:], 'th')}" if number[-1:].isdecimal() else number


def _german_number(text: str) -> str:
    return f"{int(text):,}".replace(",", ".") if re.fullmatch(r"\d{5,}", text) else text


_CURRENCIES = {
    "US$": "us$ usd us_dollar", "$": "$", "A$": "a$ aud au$", "C$": "c$ cad ca$", "NZ$": "nz$ nzd", "HK$": "hk$ hkd", "R$": "r$ brl",
    "£": "£ gbp pound_sterling", "€": "€ euro", "¥": "¥ jpy yen", "CN¥": "cny rmb cn¥", "₹": "inr ₹ indian_rupee indian_rupees",
    "₽": "rub ruble", "₩": "krw won", "₱": "php philippine_peso", "CHF ": "chf", "kr ": "sek nok dkk", "₪": "ils nis", "R": "zar",
}  # fmt: skip

NUMBERS: dict[str, Render] = by_name(
    {
        "sup superscript": lambda args: raised(args.at(1)),
        "formatnum fnum nombre_formaté": _formatnum,
        "number format_number formatnumber": _formatnum,
        "convert convertir": lambda args: convert(args.positional, args.named),
        "cvt": lambda args: convert(args.positional, {"abbr": "on", **args.named}),
        "unité unite nombre nb unidad": _number_of,
        "frac fraction sfrac fracn": _fraction,
        "bruch": _fraction,
        "val": _value,
        "e exp": _power,
        "10^": lambda args: f"10{raised(args.at(1))}",
        "gaps": _gaps,
        "chem chemical_formula fchim": lambda args: "".join(
            raised(part) if re.fullmatch(r"\d*[-−+]", part) else part for part in args.given()
        ),
        "nuclide nuclide2 simplenuclide simplenuclide2": _nuclide,
        "sqrt radic": lambda args: f"√{args.at(1)}",
        "eur": _after_currency,
        "railgauge track_gauge": _gauge,
        "ordinal ordinal_number": lambda args: _ordinal(args.at(1)),
        "höhe": lambda args: f"{_german_number(args.at(1))} m",
        **{names: _currency(mark) for mark, names in _CURRENCIES.items()},
    }
)
"""Renders by the names of their templates."""
