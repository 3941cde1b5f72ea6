r"""Products whose order matters: of matrices, which a transpose or an inverse gives away, and of vectors.

(AB)^T is B^TA^T and not A^TB^T; P^{-1}AP is not A; a \times b is -(b \times a). Expressions are read into sympy's
symbols that don't commute; what cannot be read equals nothing.
"""

from __future__ import annotations

import re
from typing import Any

_MARK = r"(?:\\top|\\intercal|\\dagger|\\ast|[TH*]|\\(?:text|mathsf)\s*\{?\s*[TH]\s*\}?)"
_TRANSPOSED = rf"(?:\^\s*{_MARK}|\^\s*\{{\s*(?:-\s*)?{_MARK}\s*\}})"
_CAPITAL = r"(?:[A-Z]|\\(?:Sigma|Lambda|Gamma|Phi|Psi|Omega|Delta)(?![a-zA-Z])|\([^()]*[A-Z][^()]*\))\s*\}?\s*"
_TRANSPOSE = re.compile(_CAPITAL + _TRANSPOSED)
_INVERSE = re.compile(_CAPITAL + r"\^\s*\{\s*-\s*1\s*\}")
# Nobody divides by a matrix.
_DIVIDED = re.compile(r"\\frac\s*\{(?:[^{}]|\{[^{}]*\})*\}\s*\{[^{}]*(?<!\\)[A-Z]|/\s*\(?[^()+\-]{0,9}[A-Z]")
_LOWER_TRANSPOSED = re.compile(r"[a-z]\s*\}?\s*\^\s*\{?\s*(?:\\top|\\intercal|\\dagger)")
_UPRIGHT = re.compile(r"\\(?:text|mathsf)\s*\{?\s*([TH])\s*\}?")
_BOTH_WAYS = re.compile(r"([A-Z])\s*([A-Z])(?=.*\2\s*\1)", re.DOTALL)
_VECTORS = re.compile(r"\\(?:vec|hat|overrightarrow|bold|mathbf)")
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?)|(?P<vector>\\(?:vec|hat|overrightarrow|bar|tilde|overline)\s*(?:\{[^{}]*\}|[a-zA-Z]))"
    r"|(?P<command>\\[a-zA-Z]+)|(?P<letter>[a-zA-Z])|(?P<sign>[-+*/^_(){}\[\]]))"
)
_DEEPEST = 50
"""Brackets within brackets that are read."""
_MOST_FACTORS = 6
"""Sums multiplied with themselves that are expanded: each doubles the terms."""
_ENDS = ("", "+", "-", ")", "}", "]", "*", "/", r"\cdot", r"\times")
_NO_ORDER = frozenset("abcdehiklmnrst")
"""Letters that are numbers beside matrices; the others may be vectors."""
_UPPER_GREEK = frozenset((r"\Sigma", r"\Lambda", r"\Gamma", r"\Phi", r"\Psi", r"\Omega", r"\Delta"))
_GREEK = re.compile(
    r"\\(?:alpha|beta|gamma|delta|(?:var)?epsilon|theta|lambda|mu|sigma|omega|phi|pi|rho|tau|eta|kappa)"
)


def has_order(*texts: str) -> bool:
    """Whether the order of factors matters in one of these."""
    if any("^" in text and (_TRANSPOSE.search(text) or _LOWER_TRANSPOSED.search(text)) for text in texts):
        return True
    inverted = any("^" in text and _INVERSE.search(text) for text in texts) and not any(map(_DIVIDED.search, texts))
    if inverted and len(set(re.findall(r"[A-Z]|\\[A-Z][a-z]+", " ".join(texts)))) > 1:
        return True
    return has_cross_product(*texts) or any(_BOTH_WAYS.search(text) for text in texts)


def has_cross_product(*texts: str) -> bool:
    r"""Whether a text has vectors and \times."""
    return any(r"\times" in text and _VECTORS.search(text) for text in texts)


def equal_in_order(gold: str, answer: str) -> bool:
    """Whether two expressions, or two equations, are equal with their factors in order."""
    import sympy

    vectors = has_cross_product(gold, answer)
    try:
        left, right = (_difference(side, vectors) for side in (gold, answer))
    except _Unread:
        return False
    if ("=" in gold) != ("=" in answer):
        return False
    if left == right:
        return True
    sums = [power.exp for power in (left - right).atoms(sympy.Pow) if power.base.is_Add]
    if not all(exponent.is_Integer and abs(exponent) <= _MOST_FACTORS for exponent in sums):
        return False
    if sympy.expand(left - right) == 0:
        return True
    return "=" in gold and sympy.expand(left + right) == 0


class _Unread(Exception):
    """An expression that this cannot read."""


def _difference(text: str, vectors: bool) -> Any:
    sides = text.split("=")
    if len(sides) > 2:
        raise _Unread
    read = [_Reader(side, vectors).whole() for side in sides]
    return read[0] - read[1] if len(read) == 2 else read[0]


class _Reader:
    """Reads one expression from left to right."""

    def __init__(self, text: str, vectors: bool):
        self.vectors = vectors
        self.tokens: list[tuple[str, str]] = []
        place = 0
        text = _UPRIGHT.sub(r"\1", text).strip()
        while place < len(text):
            found = _TOKEN.match(text, place)
            if found is None or found.lastgroup is None:
                raise _Unread
            self.tokens.append((found.lastgroup, found[found.lastgroup]))
            place = found.end()
        self.place, self.depth = 0, 0

    def whole(self) -> Any:
        """The expression that all of the text is."""
        value = self._sum()
        if self.place != len(self.tokens):
            raise _Unread
        return value

    def _next(self) -> str:
        return self.tokens[self.place][1] if self.place < len(self.tokens) else ""

    def _take(self, expected: str | None = None) -> tuple[str, str]:
        if self.place >= len(self.tokens) or (expected is not None and self._next() != expected):
            raise _Unread
        self.place += 1
        return self.tokens[self.place - 1]

    def _sum(self) -> Any:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise _Unread
        total = self._terms()
        self.depth -= 1
        return total

    def _terms(self) -> Any:
        sign = 1
        while self._next() in ("+", "-"):
            sign = -sign if self._take()[1] == "-" else sign
        total = sign * self._product()
        while self._next() in ("+", "-"):
            sign = -1 if self._take()[1] == "-" else 1
            total += sign * self._product()
        return total

    def _product(self) -> Any:
        product = self._run()
        while self._next() in ("*", "/", r"\cdot", r"\times"):
            symbol = self._take()[1]
            # a/bc is read as a/b times c, and a \times 2b as a \times (2b).
            factor = self._power() if symbol == "/" else self._run()
            if symbol == "/":
                product = product * _inverse(factor)
                if self._next() not in _ENDS:
                    product = product * self._run()
            else:
                product = _multiplied(product, factor, symbol) if self.vectors else product * factor
        return product

    def _run(self) -> Any:
        """Factors side by side."""
        run = self._power()
        while self._next() not in _ENDS:
            run = run * self._power()
        return run

    def _power(self) -> Any:
        base = self._atom()
        while self._next() in ("^", "_"):
            if self._take()[1] == "_":
                raise _Unread
            base = self._raised(base)
        return base

    def _raised(self, base: Any) -> Any:
        inverted = False
        braced = self._next() == "{"
        if braced:
            self._take()
        start = self.place
        if self._next() == "-":
            self._take()
            inverted = True
        mark = _mark(self._next())
        if mark is not None:
            self._take()
            exponent = None
        elif braced:
            self.place, inverted = start, False
            exponent = self._sum()
        else:
            exponent = self._atom()
        if braced:
            self._take("}")
        if exponent is None:
            base = _transposed(base, mark or "T")
            return _inverse(base) if inverted else base
        return _to_the(_inverse(base), -exponent) if exponent.is_negative else _to_the(base, exponent)

    def _atom(self) -> Any:
        import sympy

        kind, text = self._take()
        if kind == "number":
            return sympy.Rational(text)
        if kind == "vector":
            return sympy.Symbol(re.sub(r"[\s{}]", "", text), commutative=False)
        if kind == "letter":
            return self._letter(text)
        if text in ("(", "{", "["):
            value = self._sum()
            self._take({"(": ")", "{": "}", "[": "]"}[text])
            return value
        if text == r"\frac":
            self._take("{")
            top = self._sum()
            self._take("}")
            self._take("{")
            bottom = self._sum()
            self._take("}")
            if not (bottom.is_commutative or top.is_commutative):
                raise _Unread
            return top * _inverse(bottom)
        if text == r"\sqrt":
            self._take("{")
            inside = self._sum()
            self._take("}")
            if not inside.is_commutative:
                raise _Unread
            return sympy.sqrt(inside)
        if text in _UPPER_GREEK or _GREEK.fullmatch(text):
            return self._letter(text)
        raise _Unread

    def _letter(self, text: str) -> Any:
        import sympy

        index = ""
        if self._next() == "_":
            self._take()
            if self._next() == "{":
                self._take()
                while self._next() not in ("}", ""):
                    index += self._take()[1]
                self._take("}")
            else:
                index = self._take()[1]
        if text == "I" and not index and not self.vectors:
            return sympy.Integer(1)
        numbers = text.islower() and (text.startswith("\\") or self.vectors or text in _NO_ORDER)
        return sympy.Symbol(f"{text}_{index}" if index else text, commutative=numbers and text not in _UPPER_GREEK)


def _mark(text: str) -> str | None:
    if text in ("T", r"\top", r"\intercal"):
        return "T"
    return "H" if text in ("*", r"\ast", r"\dagger", "H") else None


def _transposed(expression: Any, mark: str) -> Any:
    """(AB)^T = B^T A^T, (A+B)^T = A^T + B^T, (A^T)^T = A; numbers stay."""
    import sympy

    if expression.is_commutative:
        return expression
    if expression.is_Symbol:
        name = expression.name
        return sympy.Symbol(name[:-2] if name.endswith(f"^{mark}") else f"{name}^{mark}", commutative=False)
    parts = [_transposed(part, mark) for part in expression.args]
    if expression.is_Add:
        return sympy.Add(*parts)
    if expression.is_Mul:
        return sympy.Mul(*reversed(parts))
    return _to_the(parts[0], expression.exp)


def _inverse(expression: Any) -> Any:
    """(AB)^{-1} = B^{-1} A^{-1}; that of a sum stays as it is."""
    import sympy

    if expression.is_Mul:
        return sympy.Mul(*(_inverse(part) for part in reversed(expression.args)))
    if expression.is_Pow:
        return _to_the(expression.base, -expression.exp)
    return sympy.Pow(sympy.expand(expression), -1)


def _to_the(base: Any, exponent: Any) -> Any:
    import sympy

    if not exponent.is_commutative:
        raise _Unread
    return sympy.Pow(base, exponent)


def _multiplied(left: Any, right: Any, symbol: str) -> Any:
    r"""a \times b = -(b \times a) and a \cdot b = b \cdot a, term by term."""
    import sympy

    if left.is_commutative or right.is_commutative:
        return left * right
    total = sympy.Integer(0)
    for first in sympy.Add.make_args(sympy.expand(left)):
        for second in sympy.Add.make_args(sympy.expand(right)):
            (number, ours), (other, theirs) = first.args_cnc(), second.args_cnc()
            names = [str(sympy.Mul(*ours)), str(sympy.Mul(*theirs))]
            factor = sympy.Mul(*number, *other)
            if symbol == r"\times":
                if names[0] == names[1]:
                    continue
                factor = factor if names[0] < names[1] else -factor
                total += factor * sympy.Symbol(f"cross({','.join(sorted(names))})", commutative=False)
            else:
                total += factor * sympy.Symbol(f"dot({','.join(sorted(names))})")
    return total
