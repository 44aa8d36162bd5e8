"""Texts made by rule from real ones, of which it is known whether they ask the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_NO_ARGUMENTS = (
    "the|a|an|my|your|his|her|their|our|this|that|it|me|you|us|them|i|be|do|get|is|are|was|were|does|did|can"
    "|what|why|how|which|who|should|would|will|so|if"
)
_ARGUMENT = rf"((?!(?i:{_NO_ARGUMENTS})\b)[A-Za-z][\w+#-]*(?: [A-Z][\w+#-]*)*)"
_COMPARED = r"(?:is |are |be )?(?:better|worse|bigger|faster|older|higher|more \w+) than"
_SWAPS = (
    re.compile(rf"\bfrom {_ARGUMENT} to {_ARGUMENT}"),
    re.compile(rf"\b{_ARGUMENT} {_COMPARED} {_ARGUMENT}"),
    re.compile(rf"\bconvert(?:ing)? {_ARGUMENT} (?:in)?to {_ARGUMENT}"),
    re.compile(rf"\breplace {_ARGUMENT} with {_ARGUMENT}"),
    re.compile(rf"\b{_ARGUMENT} (?:hates?|loves?|attacks?|beats?|supports?) {_ARGUMENT}"),
)
_NEGATABLE = re.compile(
    r"\b(is|are|was|were|do|does|did|can|could|will|would|should|have|has)"
    r"(n?['\N{RIGHT SINGLE QUOTATION MARK}]t| ?not)?( I| you| we| they| it| he| she)?\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\b\d{1,4}\b")
_YEAR_RANGE = (1900, 2100)
_UNITS = {
    "kg": "lbs", "lbs": "kg", "days": "weeks", "weeks": "months", "months": "years", "years": "months",
    "hours": "minutes", "minutes": "hours", "cm": "inches", "inches": "cm", "miles": "km", "km": "miles",
    "rupees": "dollars", "dollars": "rupees", "GB": "MB", "MB": "GB",
}  # fmt: skip
_UNIT = re.compile(rf"(?<=\d )(?:{'|'.join(_UNITS)})\b")
_CONTRACTIONS = (
    ("what's", "what is"),
    ("What's", "What is"),
    ("it's", "it is"),
    ("I'm", "I am"),
    ("don't", "do not"),
    ("doesn't", "does not"),
    ("isn't", "is not"),
    ("can't", "cannot"),
    ("aren't", "are not"),
)
_IN_CAPITALS = 0.3


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """kind: the rule. original, changed: the two texts. same: whether they ask the same."""

    kind: str
    original: str
    changed: str
    same: bool


def counterfactuals(texts: Sequence[str], rng: np.random.Generator) -> Iterator[Counterfactual]:
    """Yield what each rule makes of each text that it applies to, in the order of the texts.

    Not the same: "reversed" swaps the arguments of an ordered relation, "negated" puts in or takes out a not,
    "renumbered" changes a number or a year, "other unit" a unit. The same: "letter case", "punctuation",
    "white space" and "contraction" reword without harm.
    """
    for text in texts:
        for kind, (rule, same) in RULES.items():
            changed = rule(text, rng)
            if changed is not None and changed != text:
                yield Counterfactual(kind=kind, original=text, changed=changed, same=same)


def swap_arguments(text: str, _rng: np.random.Generator) -> str | None:
    """Swap the two arguments of the first ordered relation; None without one."""
    for pattern in _SWAPS:
        match = pattern.search(text)
        if match is not None and match[1].lower() != match[2].lower():
            between = text[match.end(1) : match.start(2)]
            return text[: match.start(1)] + match[2] + between + match[1] + text[match.end(2) :]
    return None


def negate(text: str, _rng: np.random.Generator) -> str | None:
    """Put "not" after the first auxiliary verb and its pronoun, or take it out; None without one."""
    match = _NEGATABLE.search(text)
    if match is None:
        return None
    verb, negation, pronoun = match[1], match[2], match[3] or ""
    inserted = f"{verb}{pronoun}" if negation else f"{verb}{pronoun} not"
    return text[: match.start()] + inserted + text[match.end() :]


def renumber(text: str, rng: np.random.Generator) -> str | None:
    """Change the first number: a year by 1 to 9, another to one from half to three times as large."""
    match = _NUMBER.search(text)
    if match is None:
        return None
    number = int(match[0])
    if _YEAR_RANGE[0] <= number < _YEAR_RANGE[1]:
        other = number - int(rng.integers(1, 10))
    else:
        other = int(rng.integers(number // 2, 3 * number + 3))
        other += other == number
    return text[: match.start()] + str(other) + text[match.end() :]


def change_unit(text: str, _rng: np.random.Generator) -> str | None:
    """Change the first unit after a number; None without one."""
    match = _UNIT.search(text)
    return None if match is None else text[: match.start()] + _UNITS[match[0]] + text[match.end() :]


def change_case(text: str, rng: np.random.Generator) -> str | None:
    """Write all in lower case, sometimes in capitals."""
    return text.upper() if rng.random() < _IN_CAPITALS else text.lower()


def change_punctuation(text: str, rng: np.random.Generator) -> str | None:
    """Leave out the last mark, or double it; None where the text ends with none."""
    stripped = text.rstrip()
    if not stripped.endswith(("?", ".")):
        return None
    return stripped[:-1] if rng.random() < 0.5 else stripped + stripped[-1]


def change_spaces(text: str, rng: np.random.Generator) -> str | None:
    """Double one space, and put one at the end; None where there is none."""
    spaces = [place for place, char in enumerate(text) if char == " "]
    if not spaces:
        return None
    place = spaces[int(rng.integers(len(spaces)))]
    return f"{text[:place]} {text[place:]} "


def change_contraction(text: str, _rng: np.random.Generator) -> str | None:
    """Write the first contraction out, or contract the first that is written out; None without one."""
    for short, full in _CONTRACTIONS:
        if short in text:
            return text.replace(short, full, 1)
        if re.search(rf"\b{full}\b", text):
            return re.sub(rf"\b{full}\b", short, text, count=1)
    return None


Rule = Callable[[str, np.random.Generator], str | None]

RULES: dict[str, tuple[Rule, bool]] = {
    "reversed": (swap_arguments, False),
    "negated": (negate, False),
    "renumbered": (renumber, False),
    "other unit": (change_unit, False),
    "letter case": (change_case, True),
    "punctuation": (change_punctuation, True),
    "white space": (change_spaces, True),
    "contraction": (change_contraction, True),
}
"""Each rule by its kind, and whether what it makes still asks the same."""
