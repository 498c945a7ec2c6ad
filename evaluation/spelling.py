"""Numbers in English text, written out the way they are usually read: `$5` five dollars, `3.14` three point one four.

Limits: English only. A bare 1100 to 1999 is read as a year (1984: nineteen eighty four), digits that begin with 0 or
run past 12 one by one; dates, telephone groups and fractions have no rule of their own.
"""

from __future__ import annotations

import re

_ONES = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
_TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SCALES = ((10**9, "billion"), (10**6, "million"), (10**3, "thousand"), (10**2, "hundred"))
_ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
_CURRENCIES = {"$": "dollars", "€": "euros", "£": "pounds"}
_NUMBER = re.compile(r"([$€£]?)((?:\d{1,3}(?:,\d{3})+|\d+))(?:\.(\d+))?(st|nd|rd|th)?\b(\s?%)?", re.IGNORECASE)


def spell_numbers(text: str) -> str:
    """The text with every number in words: `Room 12, 50%` becomes `Room  twelve ,  fifty percent `."""
    return _NUMBER.sub(_spell_match, text)


def cardinal(number: int) -> str:
    """0 to 999,999,999,999 in words, without `and`: 342 is `three hundred forty two`."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens = _TENS[number // 10]
        return tens if number % 10 == 0 else f"{tens} {_ONES[number % 10]}"
    size, name = next(scale for scale in _SCALES if number >= scale[0])
    above = f"{cardinal(number // size)} {name}"
    return above if number % size == 0 else f"{above} {cardinal(number % size)}"


def _spell_match(match: re.Match[str]) -> str:
    currency, digits, decimals, ordinal, percent = match.groups()
    words = _whole(digits, is_year=not (currency or decimals or ordinal or percent))
    if decimals:
        words += " point " + " ".join(_ONES[int(digit)] for digit in decimals)
    if ordinal:
        words = _ordinal(words)
    if currency:
        words += " " + _CURRENCIES[currency]
    return f" {words}{' percent' if percent else ''} "


def _whole(digits: str, is_year: bool) -> str:
    bare = digits.replace(",", "")
    number = int(bare)
    if (bare[0] == "0" and len(bare) > 1) or len(bare) > 12:
        return " ".join(_ONES[int(digit)] for digit in bare)
    if is_year and bare == digits and 1100 <= number <= 1999 and number % 1000:
        century, year = divmod(number, 100)
        return f"{cardinal(century)} {cardinal(year) if year > 9 else f'oh {_ONES[year]}' if year else 'hundred'}"
    return cardinal(number)


def _ordinal(words: str) -> str:
    before, _, last = words.rpartition(" ")
    if last in _ORDINALS:
        last = _ORDINALS[last]
    elif last == "twelve":
        last = "twelfth"
    else:
        last = last.removesuffix("y") + "ieth" if last.endswith("y") else last + "th"
    return f"{before} {last}".strip()
