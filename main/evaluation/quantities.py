"""Numbers with units, in base units, so that 1.5 km and 1500 m are the same."""

import re
from fractions import Fraction
from typing import NamedTuple

from main.evaluation.numbers import number_before

# dimension -> the names of each unit, and how many of the base unit it is
_TABLE: dict[str, dict[str, Fraction | int | str]] = {
    "length": {
        "m metre metres meter meters 米": 1,
        "km kilometre kilometres kilometer kilometers 千米 公里": 1000,
        "cm centimetre centimetres centimeter centimeters 厘米": "1/100",
        "mm millimetre millimetres millimeter millimeters 毫米": "1/1000",
        "in inch inches": "127/5000", "ft foot feet": "381/1250", "mi mile miles": "1609344/1000",
    },
    "mass": {
        "kg kilogram kilograms 千克 公斤": 1, "g gram grams 克": "1/1000",
        "mg milligram milligrams 毫克": "1/1000000", "t tonne tonnes 吨": 1000,
        "lb lbs pound pounds": "45359237/100000000",
    },
    "time": {
        "s sec second seconds 秒": 1, "ms millisecond milliseconds 毫秒": "1/1000",
        "min minute minutes 分钟": 60, "h hr hour hours 小时": 3600, "d day days 天": 86400,
        "week weeks 周": 604800,
    },
    "volume": {
        "L l litre litres liter liters 升": 1,
        "mL ml millilitre millilitres milliliter milliliters 毫升": "1/1000",
    },
    "area": {
        "m^2 m2 平方米": 1, "km^2 km2 平方千米 平方公里": 1000000, "cm^2 cm2 平方厘米": "1/10000",
    },
    "speed": {"m/s": 1, "km/h": "5/18", "mph": "1397/3125"},
}  # fmt: skip
_UNITS = {
    name: (dimension, Fraction(size))
    for dimension, units in _TABLE.items()
    for names, size in units.items()
    for name in names.split()
}
_UNIT = "|".join(map(re.escape, sorted(_UNITS, key=len, reverse=True)))


class Quantity(NamedTuple):
    """value: in the dimension's base unit (m, kg, s, L, m^2, m/s); number: as it was written.

    dimension: '' where no unit of ours stands behind the number.
    """

    value: Fraction
    dimension: str
    number: Fraction


def last_quantity(text: str) -> Quantity | None:
    """The last number of a text, in its last \\boxed{} if it has one, with its unit.

    >>> last_quantity("about 1.5 km")
    Quantity(value=Fraction(1500, 1), dimension='length', number=Fraction(3, 2))
    """
    found = number_before(text, _UNIT)
    if found is None:
        return None
    number, unit = found
    dimension, size = _UNITS.get(unit, ("", Fraction(1)))
    return Quantity(number * size, dimension, number)
