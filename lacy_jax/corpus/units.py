"""Units of measurement: whether two quantities are the same, and conversion to another unit.

It has two uses: Wikipedia's `convert` template, which states a quantity in two systems, and finding out whether a text
has already stated a quantity, in any unit.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

_TABLE = """
length    m     metre         metres           m       1              ft
length    km    kilometre     kilometres       km      1000           mi
length    cm    centimetre    centimetres      cm      0.01           in
length    mm    millimetre    millimetres      mm      0.001          in
length    um    micrometre    micrometres      μm      1e-6           in
length    nm    nanometre     nanometres       nm      1e-9           in
length    mi    mile          miles            mi      1609.344       km
length    ft    foot          feet             ft      0.3048         m
length    in    inch          inches           in      0.0254         mm
length    yd    yard          yards            yd      0.9144         m
length    nmi   nautical_mile nautical_miles   nmi     1852           km
length    fathom fathom       fathoms          fathom  1.8288         m
length    furlong furlong     furlongs         furlong 201.168        m
length    chain chain         chains           chain   20.1168        m
length    AU    astronomical_unit astronomical_units au 149597870700  km
length    ly    light-year    light-years      ly      9460730472580800 pc
length    pc    parsec        parsecs          pc      3.0856775814671916e16 ly
area      m2    square_metre  square_metres    m2      1              sqft
area      km2   square_kilometre square_kilometres km2 1e6            sqmi
area      cm2   square_centimetre square_centimetres cm2 1e-4         sqin
area      mm2   square_millimetre square_millimetres mm2 1e-6         sqin
area      ha    hectare       hectares         ha      10000          acre
area      sqmi  square_mile   square_miles     sq_mi   2589988.110336 km2
area      acre  acre          acres            acres   4046.8564224   ha
area      sqft  square_foot   square_feet      sq_ft   0.09290304     m2
area      sqyd  square_yard   square_yards     sq_yd   0.83612736     m2
area      sqin  square_inch   square_inches    sq_in   0.00064516     cm2
volume    m3    cubic_metre   cubic_metres     m3      1              cuft
volume    km3   cubic_kilometre cubic_kilometres km3   1e9            cumi
volume    cm3   cubic_centimetre cubic_centimetres cm3 1e-6           cuin
volume    cc    cubic_centimetre cubic_centimetres cc  1e-6           cuin
volume    cuft  cubic_foot    cubic_feet       cu_ft   0.028316846592 m3
volume    cuin  cubic_inch    cubic_inches     cu_in   1.6387064e-5   cm3
volume    cuyd  cubic_yard    cubic_yards      cu_yd   0.764554857984 m3
volume    cumi  cubic_mile    cubic_miles      cu_mi   4168181825.440579584 km3
volume    L     litre         litres           L       0.001          impgal
volume    mL    millilitre    millilitres      mL      1e-6           impoz
volume    hL    hectolitre    hectolitres      hL      0.1            impgal
volume    impgal imperial_gallon imperial_gallons imp_gal 0.00454609  L
volume    usgal US_gallon     US_gallons       US_gal  0.003785411784 L
volume    impoz imperial_fluid_ounce imperial_fluid_ounces imp_fl_oz 2.84130625e-5 mL
volume    usoz  US_fluid_ounce US_fluid_ounces US_fl_oz 2.95735295625e-5 mL
volume    oilbbl barrel       barrels          bbl     0.158987294928 m3
volume    acre.ft acre-foot   acre-feet        acre⋅ft 1233.48183754752 m3
mass      kg    kilogram      kilograms        kg      1              lb
mass      g     gram          grams            g       0.001          oz
mass      mg    milligram     milligrams       mg      1e-6           gr
mass      t     tonne         tonnes           t       1000           LT
mass      lb    pound         pounds           lb      0.45359237     kg
mass      oz    ounce         ounces           oz      0.028349523125 g
mass      ozt   troy_ounce    troy_ounces      ozt     0.0311034768   g
mass      gr    grain         grains           gr      6.479891e-5    mg
mass      st    stone         stone            st      6.35029318     kg
mass      cwt   hundredweight hundredweight    cwt     50.80234544    kg
mass      LT    long_ton      long_tons        long_tons 1016.0469088 t
mass      ST    short_ton     short_tons       short_tons 907.18474   t
speed     m/s   metre_per_second metres_per_second m/s 1              ft/s
speed     km/h  kilometre_per_hour kilometres_per_hour km/h 0.2777777777777778 mph
speed     km/s  kilometre_per_second kilometres_per_second km/s 1000  mi/s
speed     mph   mile_per_hour miles_per_hour   mph     0.44704        km/h
speed     mi/s  mile_per_second miles_per_second mi/s  1609.344       km/s
speed     kn    knot          knots            kn      0.5144444444444445 km/h
speed     ft/s  foot_per_second feet_per_second ft/s   0.3048         m/s
speed     ft/min foot_per_minute feet_per_minute ft/min 0.00508       m/min
speed     m/min metre_per_minute metres_per_minute m/min 0.016666666666666666 ft/min
temperature C   degree_Celsius degrees_Celsius °C      1              F
temperature F   degree_Fahrenheit degrees_Fahrenheit °F 0.5555555555555556 C
temperature K   kelvin        kelvins          K       1              C
pressure  Pa    pascal        pascals          Pa      1              psi
pressure  kPa   kilopascal    kilopascals      kPa     1000           psi
pressure  hPa   hectopascal   hectopascals     hPa     100            inHg
pressure  MPa   megapascal    megapascals      MPa     1e6            psi
pressure  bar   bar           bars             bar     100000         kPa
pressure  mbar  millibar      millibars        mbar    100            inHg
pressure  atm   standard_atmosphere standard_atmospheres atm 101325   kPa
pressure  psi   pound_per_square_inch pounds_per_square_inch psi 6894.757293168361 kPa
pressure  inHg  inch_of_mercury inches_of_mercury inHg 3386.388640341 kPa
pressure  mmHg  millimetre_of_mercury millimetres_of_mercury mmHg 133.322387415 kPa
power     W     watt          watts            W       1              hp
power     kW    kilowatt      kilowatts        kW      1000           hp
power     MW    megawatt      megawatts        MW      1e6            hp
power     GW    gigawatt      gigawatts        GW      1e9            hp
power     hp    horsepower    horsepower       hp      745.69987158227022 kW
power     bhp   brake_horsepower brake_horsepower bhp  745.69987158227022 kW
power     shp   shaft_horsepower shaft_horsepower shp  745.69987158227022 kW
power     PS    metric_horsepower metric_horsepower PS 735.49875      kW
energy    J     joule         joules           J       1              cal
energy    kJ    kilojoule     kilojoules       kJ      1000           kcal
energy    MJ    megajoule     megajoules       MJ      1e6            kWh
energy    cal   calorie       calories         cal     4.184          J
energy    kcal  kilocalorie   kilocalories     kcal    4184           kJ
energy    kWh   kilowatt-hour kilowatt-hours   kWh     3600000        MJ
energy    BTU   British_thermal_unit British_thermal_units BTU 1055.05585262 kJ
energy    ftlbf foot-pound    foot-pounds      ft⋅lb   1.3558179483314004 J
force     N     newton        newtons          N       1              lbf
force     kN    kilonewton    kilonewtons      kN      1000           lbf
force     MN    meganewton    meganewtons      MN      1e6            lbf
force     lbf   pound-force   pounds-force     lbf     4.4482216152605 N
force     kgf   kilogram-force kilograms-force kgf     9.80665        N
torque    Nm    newton-metre  newton-metres    N⋅m     1              lbft
torque    lbft  pound-foot    pound-feet       lb⋅ft   1.3558179483314004 Nm
per_area  /km2  per_square_kilometre per_square_kilometre /km2 1e-6   /sqmi
per_area  /sqmi per_square_mile per_square_mile /sq_mi 3.861021585424458e-7 /km2
per_area  /ha   per_hectare   per_hectare      /ha     1e-4           /acre
per_area  /acre per_acre      per_acre         /acre   2.4710538146716534e-4 /ha
flow      m3/s  cubic_metre_per_second cubic_metres_per_second m3/s 1 cuft/s
flow      cuft/s cubic_foot_per_second cubic_feet_per_second cu_ft/s 0.028316846592 m3/s
density   kg/m3 kilogram_per_cubic_metre kilograms_per_cubic_metre kg/m3 1 lb/cuft
density   g/cm3 gram_per_cubic_centimetre grams_per_cubic_centimetre g/cm3 1000 lb/cuin
density   lb/cuft pound_per_cubic_foot pounds_per_cubic_foot lb/cu_ft 16.018463373960142 kg/m3
density   lb/cuin pound_per_cubic_inch pounds_per_cubic_inch lb/cu_in 27679.904710203125 g/cm3
"""
"""kind, code in `convert`, singular, plural, symbol, size in the kind's SI unit, default target unit of `convert`."""
_ZERO = {"C": 273.15, "F": 255.3722222222222}
"""The zero points, in kelvin, of the scales that do not begin at absolute zero."""
_ALIASES = {
    "foot": "ft", "feet": "ft", "mile": "mi", "miles": "mi", "inch": "in", "inches": "in", "yards": "yd", "metre": "m",
    "meter": "m", "metres": "m", "meters": "m", "kilometres": "km", "kilometers": "km", "kilometer": "km", "kilometre": "km",
    "sqkm": "km2", "km²": "km2", "m²": "m2", "mi2": "sqmi", "ft2": "sqft", "yd2": "sqyd", "in2": "sqin", "acres": "acre",
    "sqm": "m2", "hectare": "ha", "hectares": "ha", "ft3": "cuft", "in3": "cuin", "yd3": "cuyd", "mi3": "cumi",
    "l": "L", "ml": "mL", "litre": "L", "liter": "L", "litres": "L", "liters": "L", "USgal": "usgal", "U.S.gal": "usgal", "gal": "usgal", "impfloz": "impoz",
    "USfloz": "usoz", "USoz": "usoz", "usfloz": "usoz", "lbs": "lb", "pound": "lb", "pounds": "lb", "kilogram": "kg", "tonnes": "t",
    "tonne": "t", "MT": "t", "short ton": "ST", "short tons": "ST", "long ton": "LT", "long tons": "LT", "kmh": "km/h", "kph": "km/h",
    "knot": "kn", "knots": "kn", "°C": "C", "°F": "F", "degC": "C", "degF": "F", "micrometre": "um", "μm": "um", "µm": "um",
    "au": "AU", "kt": "kn", "N.m": "Nm", "N·m": "Nm", "N⋅m": "Nm", "lb.ft": "lbft", "lb·ft": "lbft", "lb⋅ft": "lbft", "ft.lbf": "ftlbf", "cuft/s": "cuft/s",
    "sqft": "sqft", "PD/km2": "/km2", "PD/sqmi": "/sqmi", "m3/s": "m3/s", "light-year": "ly", "light-years": "ly", "parsec": "pc", "bbl": "oilbbl",
    "acre feet": "acre.ft", "acre-feet": "acre.ft", "acre·ft": "acre.ft", "m.": "m", "horsepower": "hp", "stone": "st",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Unit:
    """A unit of measurement.

    Attributes:
      kind: what it measures; units of one kind can be converted.
      code: as in `convert`. singular, plural, symbol: as written.
      scale: its size in the SI unit of its kind. zero: the zero of its scale, in that unit.
      default: code of the unit that `convert` converts it to by default.
    """

    kind: str
    code: str
    singular: str
    plural: str
    symbol: str
    scale: float
    default: str

    @property
    def zero(self) -> float:
        """Zero of the scale in the SI unit; 0 except for temperatures."""
        return _ZERO.get(self.code, 0.0)

    def si(self, value: float) -> float:
        """`value` of this unit in the SI unit."""
        return value * self.scale + self.zero

    def of_si(self, value: float) -> float:
        """Inverse of `si`."""
        return (value - self.zero) / self.scale


def _read_table() -> dict[str, Unit]:
    units = {}
    for line in _TABLE.split("\n"):
        if line:
            kind, code, *names, scale, default = (part.replace("_", " ") for part in line.split())
            units[code] = Unit(kind, code, names[0], names[1], names[2], float(scale), default)
    return units


UNITS = _read_table()
"""By code."""


def unit(code: str) -> Unit | None:
    """The unit of a code or name, or None."""
    return UNITS.get(code) or UNITS.get(_ALIASES.get(code, "")) or _BY_NAME.get(code.lower())


_BY_NAME = {name.lower(): u for u in reversed(UNITS.values()) for name in (u.singular, u.plural)} | {
    name.lower().replace("metre", "meter").replace("litre", "liter"): u
    for u in reversed(UNITS.values())
    for name in (u.singular, u.plural)
}


def converted(value: float, text: str, source: Unit, target: Unit) -> tuple[float, int]:
    """(value in `target`, decimals to show), rounded as by `convert`: as exact as the input, at least two figures.

    Args:
      text: the number as written; its decimals or trailing zeros say how exact it is.

    The rule comes from the documentation of Wikipedia's `convert`: the number of digits after the point (or minus the
    number of trailing zeros before it) is adapted to the factor between the units.
    """
    result = target.of_si(source.si(value))
    decimals = _decimals(text)
    if source.kind == "temperature":
        kelvin = abs(source.si(value))
        least = 2 - math.floor(math.log10(kelvin) + 1e-14) if kelvin > 1e-8 else 2
        return result, max(math.floor(decimals + math.log10(2)), least)
    if value == 0 or result == 0:
        return result, 0
    # Whole numbers in feet are shown more exactly: otherwise 50 m would be less than 49.5 m.
    whole = target.code == "ft" and value == math.floor(value)
    factor = math.log10(1 / source.scale if whole else abs(value / result)) + math.log10(2)
    least = 1 - math.floor(math.log10(abs(result)) + 1e-14)
    return result, max(math.floor(decimals + factor), least)


def _decimals(text: str) -> int:
    whole, _, rest = text.replace(",", "").partition(".")
    if rest or "." in text:
        return len(re.match(r"\d*", rest)[0])  # type: ignore[index]
    digits = whole.lstrip("-−+")
    return -(len(digits) - len(digits.rstrip("0"))) if digits.strip("0") else 0


def show(value: float, decimals: int) -> str:
    """A number with thousands separators, rounded half away from zero to `decimals` (minus n: to 10 ** n)."""
    scale = 10.0**decimals
    rounded = math.floor(abs(value) * scale + 0.5 + 1e-9) / scale
    return ("−" if value < 0 and rounded else "") + f"{rounded:,.{max(decimals, 0)}f}"


_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_SYMBOLS = sorted(
    {name for u in UNITS.values() for name in (u.symbol, u.singular, u.plural) if not name.startswith("per")}
    | {name for name in _ALIASES if name[0].isalpha() or name[0] == "°"}
    | {name for name in _BY_NAME if "meter" in name or "liter" in name},
    key=lambda name: (-len(name), name),
)
_QUANTITY = re.compile(rf"(?<![\w.,])({_NUMBER})[\s-]?({'|'.join(map(re.escape, _SYMBOLS))})(?!\w)")
_OF_SYMBOL = {u.symbol: u for u in reversed(UNITS.values())}


@dataclasses.dataclass(frozen=True, slots=True)
class Quantity:
    """A quantity that a text states.

    Attributes:
      start, end: where. kind: what it measures.
      value: in the SI unit. slack: half a unit of the last written figure, in the SI unit.
    """

    start: int
    end: int
    kind: str
    value: float
    slack: float

    def same(self, other: Quantity) -> bool:
        """Whether both are the same quantity, within the precision they are written with."""
        return self.kind == other.kind and abs(self.value - other.value) <= 1.01 * (self.slack + other.slack)


def quantities(text: str) -> Iterator[Quantity]:
    """Numbers with a unit in a text, in order; consecutive feet and inches, or stones and pounds, count as one."""
    last: Quantity | None = None
    size = 0.0
    for match in _QUANTITY.finditer(text):
        of = _OF_SYMBOL.get(match[2]) or unit(match[2])
        if of is None:
            continue
        number = match[1].replace(",", "")
        slack = 0.5 * of.scale * 10.0 ** -_decimals(number)
        found = Quantity(*match.span(), of.kind, of.si(float(number)), slack)
        joined = last is not None and text[last.end : found.start].strip() in ("", ",")
        if last is not None and joined and last.kind == of.kind in ("length", "mass") and of.scale < size:
            last, size = Quantity(last.start, found.end, of.kind, last.value + found.value, slack), of.scale
            continue
        if last is not None:
            yield last
        last, size = found, of.scale
    if last is not None:
        yield last
