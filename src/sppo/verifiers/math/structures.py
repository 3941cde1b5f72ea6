"""Rewrites pairs of answers that say one thing in two notations: systems, families of solutions, constants."""

from __future__ import annotations

import re

from sppo.verifiers.math.names import key
from sppo.verifiers.math.pieces import split_top

_SYSTEM = re.compile(r"(?:\\\{\s*)?\\begin\{(cases|array|aligned)\}(?:\s*\{[lcr|\s]*\})?(.*)\\end\{\1\}", re.DOTALL)
_NAMED_POINT = re.compile(r"\(([^()=]+)\)\s*=\s*\(([^()=]+)\)")
_FAMILY = re.compile(
    r"(?P<values>.+?)\s*(?:,\s*|,?\s*\(\s*|\\text\s*\{\s*(?:where|for|with)\s*\}\s*)(?P<name>[a-z])\s*\\in\s*(?P<set>\\mathbb\s*\{?\s*[ZN]\s*\}?)\s*\)?",
    re.DOTALL,
)
_CONSTANT = re.compile(r"(?<![a-zA-Z\\])\+\s*([cC])\Z")
_RESIDUE = r"(?:\\pm\s*|-)?\d{1,40}"
_JOINED = r"\s*(?:,\s*(?:(?:and|or)\s)?|(?:\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b))\s*"
_RESIDUES = re.compile(
    rf"(?P<name>[a-zA-Z])\s*\\equiv\s*(?P<residues>{_RESIDUE}(?:{_JOINED}{_RESIDUE}){{0,20}})\s*"
    r"\\pmod\s*\{?\s*(?P<modulus>\d{1,40})\s*\}?"
)
_COMBINATIONS = (
    re.compile(r"(?:\{\s*\}\s*)?(?:_\s*\{?(?P<n>\w+)\}?\s*)C\s*_\s*\{?(?P<k>\w+)\}?"),
    re.compile(r"C\s*_\s*\{?(?P<n>\w+)\}?\s*\^\s*\{?(?P<k>\w+)\}?"),
    re.compile(r"C\s*\^\s*\{?(?P<k>\w+)\}?\s*_\s*\{?(?P<n>\w+)\}?"),
    re.compile(r"C\s*\(\s*(?P<n>\w+)\s*,\s*(?P<k>\w+)\s*\)"),
)


def unified(gold: str, answer: str) -> tuple[str, str]:
    """Returns both, rewritten where their notations differ; equality of what they say is kept."""
    gold, answer = (_each_residue(_without_environment(side)) for side in (gold, answer))
    for named, other in ((gold, answer), (answer, gold)):
        point = _NAMED_POINT.fullmatch(named)
        if point and other.count("=") > 1:
            listed = _listed(point[1], point[2])
            gold, answer = (listed, answer) if named == gold else (gold, listed)
    gold, answer = _same_family(gold, answer)
    constants = [_CONSTANT.search(side) for side in (gold, answer)]
    if all(found and side.count(found[1]) == 1 for found, side in zip(constants, (gold, answer), strict=True) if found):
        gold, answer = (_CONSTANT.sub("+ C", side) for side in (gold, answer))
    return _with_binomials(gold, answer)


def _without_environment(text: str) -> str:
    """Writes a system of equations, which has one column, as a list."""
    system = _SYSTEM.fullmatch(text) if r"\begin" in text else None
    if system is None or r"\begin" in system[2]:
        return text
    rows = [row.strip().rstrip(",;.").strip() for row in re.split(r"\\\\", system[2])]
    rows = [re.sub(r"\s*&\s*(?==)|(?<==)\s*&\s*", "", row) for row in rows if row]
    return ", ".join(rows) if len(rows) > 1 and not any("&" in row for row in rows) else text


def _each_residue(text: str) -> str:
    r"""Says of each residue what x \equiv 2, 3 \pmod{5} says of all."""
    found = _RESIDUES.fullmatch(text) if r"\equiv" in text else None
    if found is None:
        return text
    residues = re.findall(_RESIDUE, found["residues"])
    signed = [
        sign + residue.removeprefix(r"\pm").strip()
        for residue in residues
        for sign in (("", "-") if residue.startswith(r"\pm") else ("",))
    ]
    return ", ".join(rf"{found['name']} \equiv {residue} \pmod{{{found['modulus']}}}" for residue in signed)


def _listed(names: str, values: str) -> str:
    pairs = list(zip(split_top(names, ","), split_top(values, ","), strict=False))
    return ", ".join(f"{name} = {value}" for name, value in pairs)


def _same_family(gold: str, answer: str) -> tuple[str, str]:
    r"""2k\pi, k \in Z and 2n\pi (n \in Z) are one family."""
    families = [_FAMILY.fullmatch(side) if r"\in" in side else None for side in (gold, answer)]
    first, second = families
    if first is None or second is None or key(first["set"]) != key(second["set"]):
        return gold, answer
    values = second["values"]
    if first["name"] != second["name"]:
        if re.search(rf"(?<![a-zA-Z\\]){first['name']}(?![a-zA-Z])", values):
            return gold, answer
        values = re.sub(rf"(?<!\\)(?<!\\[a-z])(?<!\\[a-z][a-z]){second['name']}(?![a-z])", first["name"], values)
    return first["values"], values


def _with_binomials(gold: str, answer: str) -> tuple[str, str]:
    r"""Reads C_n^2, {}_nC_2 and C(n,2) as binomials where the other side is one, or a number."""
    for written, other in ((gold, answer), (answer, gold)):
        if "C" not in written:
            continue
        found = next((match for form in _COMBINATIONS if (match := form.fullmatch(written))), None)
        if found and (r"\binom" in other or (re.fullmatch(r"\d+", other) and (found["n"] + found["k"]).isdigit())):
            binomial = rf"\binom{{{found['n']}}}{{{found['k']}}}"
            return (binomial, other) if written == gold else (other, binomial)
    return gold, answer
