"""Takes the unit off an answer. Degrees, percent and currency are units like any other: nothing is ever rescaled."""

from __future__ import annotations

import re

from sppo.verifiers.math.numerals import parse_number, parse_ratio

_SPELLINGS = {
    "degrees": "°", "degree": "°", "deg": "°", "percent": "%", "pct": "%", "dollars": "$", "dollar": "$", "usd": "$",
    "cents": "cent", "euros": "€", "euro": "€", "feet": "ft", "foot": "ft", "inches": "in", "inch": "in",
    "miles": "mi", "mile": "mi", "yards": "yd", "yard": "yd", "radians": "rad", "radian": "rad",
    "hours": "h", "hour": "h", "hrs": "h", "hr": "h", "minutes": "min", "minute": "min", "mins": "min",
    "seconds": "s", "second": "s", "secs": "s", "sec": "s", "meters": "m", "meter": "m", "metres": "m", "metre": "m",
    "centimeters": "cm", "centimeter": "cm", "centimetres": "cm", "centimetre": "cm", "kilometers": "km",
    "kilometer": "km", "kilometres": "km", "kilometre": "km", "millimeters": "mm", "millimeter": "mm", "grams": "g",
    "gram": "g", "kilograms": "kg", "kilogram": "kg", "pounds": "lb", "pound": "lb", "lbs": "lb", "liters": "l",
    "litres": "l", "liter": "l", "litre": "l", "l": "l", "mph": "mi/h", "kph": "km/h", "kmh": "km/h", "am": "am",
    "pm": "pm", "units": "", "unit": "", "yrs": "year", "yr": "year", "years": "year", "people": "person",
    "persons": "person", "cny": "¥", "rmb": "¥", "yuan": "¥", "yen": "¥", "jpy": "¥", "円": "¥", "元": "¥", "¢": "cent",
    "rupees": "₹", "inr": "₹", "rs": "₹", "eur": "€", "gbp": "£",
}  # fmt: skip
_PLAIN = (
    "cm|mm|km|kg|ft|in|lbs?|mph|kph|mins?|hrs?|secs?|deg|pct|usd|rad|am|pm|"
    + "|".join(sorted((word for word in _SPELLINGS if len(word) > 3), key=len, reverse=True))
    + "|days?|weeks?|months?|years?|gallons?"
)
# Words that change the value, or make it one of several: never a unit.
_NOT_A_UNIT = re.compile(
    r"\b(?:or|and|if|for|when|where|not|no|with|in|base|to|of|maybe|but|least|most|more|less|fewer|than|over|under|above|below|"
    r"greater|smaller|negative|positive|minus|plus|times|divided|mod|modulo|except|between|squared|cubed|factorial|hundreds?|"
    r"thousands?|(?:m|b|tr)illions?|dozens?|scores?|hal(?:f|ves)|thirds?|fourths?|fifths?|sixths?|eighths?|tenths?|"
    r"hundredths?|thousandths?|lakhs?|lacs?|crores?|myriads?|quadrillions?|quintillions?|doubled|tripled|quadrupled|halved|"
    r"twice|per\s?mil(?:le?)?|permile|basis|bps?|pp[mbt]|parts\s+per|pairs?|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|"
    r"twenty|(?-i:k)|bn|mn|e|i|st|nd|rd|th|ln|log|sin|cos|tan|arcsin|arccos|arctan|sqrt|pi|infinity)\b|\d",
    re.IGNORECASE,
)
# At the end they say it of the value: 5 binary, but 5 binary strings.
_SAYS_OF_VALUE = re.compile(
    r"\b(?:gross|repeating|recurring|periodic|binary|ternary|octal|hex(?:adecimal)?|reciprocal|inverse|wrong|false|"
    r"incorrect|untrue|invalid|impossible|extraneous|rejected|excluded|approximate)"
    r"(?:\s+(?:answer|value|number|numeral|decimal|notation|form|system|solution|root))?\W*\Z",
    re.IGNORECASE,
)
_POWER = r"(?:\s*\^\s*(?:\{\s*-?\s*\d\s*\}|-?\d))"
_FACTOR = rf"(?:\\text\s*\{{[^{{}}]{{1,60}}\}}|°\s*(?:\\text\s*\{{\s*[CFK]\s*\}}|[CFK](?![a-zA-Z]))|°){_POWER}?"
_WORDED = re.compile(
    rf"(?:{_FACTOR}|\\frac\s*\{{\s*{_FACTOR}\s*\}}\s*\{{\s*{_FACTOR}\s*\}})(?: ?(?:/|\\cdot)? ?{_FACTOR})*\.?\Z"
)
_WORDED_START = re.compile(r"\\text\s*\{|°|\\frac\s*\{\s*\\text\s*\{")
_SIMPLE = re.compile(
    r"(?P<value>.*[^\s\\{(\[,=+\-*/^_])(?:\s*(?P<sign>\\?%|€|£)|(?:(?<=[\d})])\s*|\s)"
    rf"(?P<words>(?:(?:square|cubic|sq\.?)\s+)?(?:{_PLAIN})\b(?:\s*(?:/|per)\s*(?:{_PLAIN})\b)?)"
    r"(?P<power>\s*\^\s*[23])?)\s*\.?",
    re.DOTALL | re.IGNORECASE,
)
_LONGEST = 160
"""Characters of a unit; it bounds the search for where one starts."""
_HALF_DAY = re.compile(r"\b([ap])\.\s?m\b\.?", re.IGNORECASE)
_NOUNS = re.compile(r"(?P<value>.*\d\}?)\s+(?P<words>[A-Za-z]{4,20}(?: [A-Za-z]{3,20}){0,2})", re.DOTALL)
_CODES = "USD|EUR|GBP|JPY|CNY|RMB|INR|Rs"
_CURRENCY = re.compile(
    r"(?P<sign>[+\-]?)\s*(?:(?P<unit>\\?\$|[£€¥￥₹]|\\yen(?![a-zA-Z]))|(?:US|AU|CA|HK|NZ)\s*\\?(?P<dollar>\$)"
    rf"|\\text\s*\{{\s*(?P<worded>\\?\$|[£€¥￥₹]|{_CODES})\.?\s*\}}|(?P<code>{_CODES})\.?(?![a-zA-Z]))\s*(?=[\d.\-\\])"
)
_SYMBOLS = {"￥": "¥", "yen": "¥"}
_MARK = re.compile(r"(?P<value>-?\d[\d.,/]*)\s*(?P<mark>\"|'{1,2}|[¢円元])")
_MARKS = {'"': "in", "''": "in", "'": "ft"}
_IN_BRACKETS = re.compile(
    r"(?P<value>.*\d\}?)\s*\(\s*(?P<words>[A-Za-z]{2,20}(?: [A-Za-z]{2,20}){0,3})\s*\)", re.DOTALL
)
# Behind a variable, words say which values it has.
_VARIABLE = re.compile(
    r"(?<![a-zA-Z\\])[a-zA-Z](?![a-zA-Z])|(?<![a-zA-Z\\])[a-zA-Z]{2,3}\Z|[<>]|\\(?:le|ge|ne|in)(?![a-zA-Z])"
)
_NO_NOUNS = re.compile(
    r"\b(?:odds?|evens?|primes?|composites?|integers?|rationals?|irrationals?|reals?|numbers?|digits?|squares?|cubes?|powers?|"
    r"always|unless|perhaps|divides|equals|exists|holds|needs|this|is|multiples?|factors?|values?|solutions?)\b",
    re.IGNORECASE,
)
_NUMERAL = re.compile(r"[+\-]?[\d.,]+")
_OPEN_END = re.compile(r"(?:[\\{(\[,=+\-*/^_<>|]|\\(?:cdot|times|pm|le|ge|ne|approx|in|or|and|to|lt|gt|text))\s*\Z")


def split_unit(text: str) -> tuple[str, str]:
    r"""Returns (value, unit) of a normalised answer, the unit in one spelling; an empty unit where there is none.

    The value is never rescaled: 5\% is 5 with unit "%", so it equals 5 and never 0.05. Words behind a value are a unit
    in \text{...} or behind a plain number, unless one of them changes the value ("million", "or", "at least").
    """
    if _NUMERAL.fullmatch(text):
        return text, ""
    currency = _CURRENCY.match(text)
    if currency:
        rest = text[currency.end() :].strip()
        unit = currency["unit"] or currency["dollar"] or currency["worded"] or currency["code"]
        return (currency["sign"] + rest, _currency(unit)) if not _words_of_value(rest) else (text, "")
    for split in (_split_mark, _split_worded, _split_simple, _split_nouns):
        value, unit = split(text)
        if value is not None:
            return (value, unit) if _may_have_unit(value, text[len(value) :]) else (text, "")
    return text, ""


def _currency(written: str) -> str:
    symbol = written.lstrip("\\")
    return _SYMBOLS.get(symbol) or _SPELLINGS.get(symbol.lower(), symbol)


def _may_have_unit(value: str, words: str) -> bool:
    """Behind a variable only what is surely a unit counts: n odd and x rational are more than n and x."""
    if not _VARIABLE.search(value):
        return True
    plain = re.sub(r"\\[a-z]+|[{}^\d/\-]", " ", words).split()
    return all(_is_unit(word.strip(".")) for word in plain) and not _NO_NOUNS.search(" ".join(plain))


def _is_unit(word: str) -> bool:
    known = len(word) <= 2 or word.lower() in _SPELLINGS or re.fullmatch(_PLAIN, word, re.IGNORECASE) is not None
    # A noun in the plural: 2n apples.
    return known or re.fullmatch(r"[A-Za-z]{3,}s", word) is not None or word.lower() in ("square", "cubic", "per")


def _split_mark(text: str) -> tuple[str | None, str]:
    """5' is 5 feet, 5¢ are 5 cents."""
    marked = _MARK.fullmatch(text)
    if marked:
        return marked["value"], _MARKS.get(marked["mark"]) or _SPELLINGS[marked["mark"]]
    return None, ""


def _changes_value(words: str) -> bool:
    """Whether words behind a value make it another one, so that they are no unit."""
    return _NOT_A_UNIT.search(words) is not None or _SAYS_OF_VALUE.search(words) is not None


def _words_of_value(text: str) -> bool:
    """Whether a word behind the amount makes it another one, as in $5 million."""
    return re.search(r"[a-zA-Z]", text) is not None and _changes_value(re.sub(r"[\d.,]|\\[a-z]+", " ", text))


def _split_worded(text: str) -> tuple[str | None, str]:
    r"""Units in \text{...}, with powers, products and quotients; and degrees."""
    for start in _WORDED_START.finditer(text, max(0, len(text) - _LONGEST)):
        unit = text[start.start() :]
        value = text[: start.start()].strip()
        if not value or not _WORDED.match(unit):
            continue
        words = re.sub(r"\\text|\\frac|\\cdot|[{}°]|\^\s*\{?\s*-?\s*\d\s*\}?", " ", unit)
        if _OPEN_END.search(value) or (_changes_value(words) and words.strip().lower() != "in"):
            return None, ""
        if "°" in unit and re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])", value):
            return None, ""
        return value, _spell(_slashed(unit))
    return None, ""


def _slashed(unit: str) -> str:
    fraction = re.match(rf"\\frac\s*\{{(\s*{_FACTOR}\s*)\}}\s*\{{(\s*{_FACTOR}\s*)\}}", unit)
    return f"{fraction[1]}/{fraction[2]}{unit[fraction.end() :]}" if fraction else unit


def _split_simple(text: str) -> tuple[str | None, str]:
    match = _SIMPLE.fullmatch(_HALF_DAY.sub(r"\1m", text))
    if match is None:
        return None, ""
    if match["sign"]:
        return match["value"], match["sign"].lstrip("\\")
    return match["value"].strip(), _spell(match["words"] + (match["power"] or ""))


def _split_nouns(text: str) -> tuple[str | None, str]:
    """Any words behind a plain number: 5 oranges, 5 (oranges)."""
    match = _NOUNS.fullmatch(text) or _IN_BRACKETS.fullmatch(text)
    if match is None or _changes_value(match["words"]):
        return None, ""
    if parse_number(match["value"]) is None and parse_ratio(match["value"]) is None:
        return None, ""
    return match["value"], _spell(match["words"])


def _spell(unit: str) -> str:
    """Brings a unit to one spelling: "square inches" and "in^2", "miles per hour" and "mph"."""
    text = re.sub(r"\\text|[{}]", "", _HALF_DAY.sub(r"\1m", unit)).replace(r"\cdot", " ").strip().rstrip(".")
    text = re.sub(r"\b(years?) old\b", r"\1", text)
    text = re.sub(r"\b(?:square|sq\.?)\s+(\w+)", r"\1^2", re.sub(r"\bcubic\s+(\w+)", r"\1^3", text))
    text = re.sub(r"\s*(?:/|\bper\b)\s*", "/", re.sub(r"\s*\^\s*", "^", text))
    return re.sub(r"[A-Za-z]+", lambda word: _spell_word(word[0]), text).replace(" ", "").replace("°°", "°")


def _spell_word(word: str) -> str:
    # Short symbols keep their case: mW is not MW.
    return _SPELLINGS.get(word.lower(), word.lower() if len(word) > 3 else word)
