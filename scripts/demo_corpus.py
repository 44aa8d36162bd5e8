"""The corpus and the questions of the demo: what its cache stores, and what is then asked of it.

The corpus is the English part of the package `chatterbot-corpus` (extra `demo`), one category per topic
file. The questions are written by hand against it and lie next to this module in `demo_questions.jsonl`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal, cast, get_args

QuestionKind = Literal["rephrasing", "near_miss", "unrelated"]

QUESTIONS_PATH = Path(__file__).with_name("demo_questions.jsonl")

_QUESTION_FIELDS = ("question", "category", "kind", "expected_question")
_APOSTROPHES = re.compile(r"['`\u2018\u2019]")
_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")

# Questions, by their key, that the corpus cut off in mid-sentence: nobody would ask them as they stand.
_FRAGMENTS = frozenset(
    {
        "can you control",
        "no it is not",
        "how angry",
        "what do you worry",
        "the feeling",
        "something fun",
        "have you felt",
        "does that make you",
        "you can not experience",
        "did tell gossips to anybody",
        "xfind spiderman",
        "when did teknolust",
        "is hal",
        "do you think hal",
        "have you read the communist",
        "you are avoiding",
        "you are toying",
        "you are self",
        "you could have avoided",
        "you make me feel like i am",
        "you pick up",
        "you should get more",
        "you should take more",
        "each year in pro baseball the",
        "if you are riding fakie inside",
        "are you a football",
        "what soccer",
        "like basketball",
        "what is the twitter birds official",
    }
)

# Questions, by their key, whose code answers lost a bracketed part in the corpus and no longer run.
_DAMAGED_CODE = frozenset(
    {
        "can you write a sorting algorithm",
        "can you write heap sort",
        "can you write a set comprehension in python",
        "can you write a map in python",
        "can you write a filter in python",
        "can you write a reduce in python",
    }
)

# Pairs, by the keys of question and answer, whose answer only points to another question, puns, or is the
# rest of a lost sentence. A later pair may hold the answer, so the pair is dropped and not the question.
_NON_ANSWERS = frozenset(
    {
        ("have you ever love", "do you feel love"),
        ("what makes you unhappy", "what makes me sad"),
        ("what do you hate", "do you hate"),
        ("do you feel emotions", "do you feel emotions"),
        ("what is your favorite investment", "what is your favorite stock"),
        ("what is hal9000", "who is hal"),
        ("you are brain damage", "you are crazy"),
        ("you should loosen up", "you are pedantic"),
        ("what is gravitation", "an invitation to a burial"),
        ("how far is the sun", "it"),
        ("how far is the moon", "it"),
        ("do you know chemistry", "what is chemistry"),
        ("do you understand thermodynamics", "what is thermodynamics"),
        ("tell me about venus", "what is venus"),
        ("do you know basketball", "what is basketball"),
        ("tell me about baseball", "what is baseball"),
    }
)


@dataclass(frozen=True, slots=True)
class CorpusEntry:
    """One question and its answer, to be stored in `category`; a multi-line answer keeps its indentation."""

    question: str
    answer: str
    category: str


@dataclass(frozen=True, slots=True)
class DemoQuestion:
    """One question to ask in `category`, and what the cache must make of it.

    `rephrasing`: a hit on the entry whose question is exactly `expected_question`.
    `near_miss`: looks like an entry of the category, but that entry's answer would be wrong: a miss.
    `unrelated`: nothing stored answers it: a miss. For both misses `expected_question` is None.
    """

    question: str
    category: str
    kind: QuestionKind
    expected_question: str | None


def load_corpus() -> list[CorpusEntry]:
    """Read the English question and answer pairs of `chatterbot-corpus`, in the order of its files.

    About 700 entries with distinct questions (see `question_key`) in some 20 categories, each named after its
    file. The order is the same at every call.

    Raises: ModuleNotFoundError naming the extra `demo` when `chatterbot-corpus` or `pyyaml` is not installed.
    """
    try:
        import yaml

        english = files("chatterbot_corpus") / "data" / "english"
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the demo corpus needs {error.name}: pip install '.[demo]'", name=error.name
        ) from error
    topics = {
        path.name.removesuffix(".yml").lower(): yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in sorted(english.iterdir(), key=lambda path: path.name)
        if path.name.endswith(".yml")
    }
    return select_entries({category: topic["conversations"] for category, topic in topics.items()})


def select_entries(conversations: Mapping[str, Iterable[object]]) -> list[CorpusEntry]:
    """Turn conversations by category into entries: the first two turns of each, if they are a usable pair.

    A usable conversation is a list that starts with two non-blank strings, its question no fragment and its
    answer an intact answer. Of equal questions (see `question_key`), over all categories, the first is kept.
    The result is in the order of the input.
    """
    entries: dict[str, CorpusEntry] = {}
    for category, turns_of_category in conversations.items():
        for turns in turns_of_category:
            if not isinstance(turns, list) or len(turns) < 2:
                continue
            question, answer = turns[:2]
            if not isinstance(question, str) or not isinstance(answer, str):
                continue
            entry = CorpusEntry(_collapse(question), _tidy(answer), category)
            key = question_key(entry.question)
            if key not in entries and _is_usable(key, answer=entry.answer):
                entries[key] = entry
    return list(entries.values())


def question_key(question: str) -> str:
    """Reduce a question to what makes it distinct: its letters and digits in lower case, single-spaced."""
    return _NOT_ALPHANUMERIC.sub(" ", _APOSTROPHES.sub("", question).casefold()).strip()


def load_questions() -> list[DemoQuestion]:
    """Read the handwritten questions of the demo, in the order of their file.

    Raises: ValueError naming the line that is not a valid question.
    """
    lines = QUESTIONS_PATH.read_text(encoding="utf-8").splitlines()
    return [parse_question(line, line_number=number) for number, line in enumerate(lines, start=1)]


def parse_question(line: str, *, line_number: int) -> DemoQuestion:
    """Parse one line of the questions file: a JSON object with exactly the fields of `DemoQuestion`.

    Raises: ValueError naming `line_number` when the line is no such object, its kind is unknown, or it names
    an expected question without being a rephrasing, or the other way round.
    """
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {line_number}: not JSON: {error}") from error
    if not isinstance(row, dict) or sorted(row) != sorted(_QUESTION_FIELDS):
        raise ValueError(
            f"line {line_number}: expected an object with the fields {', '.join(_QUESTION_FIELDS)}"
        )
    question, category, kind, expected_question = (row[field] for field in _QUESTION_FIELDS)
    if kind not in get_args(QuestionKind):
        raise ValueError(f"line {line_number}: unknown kind {kind!r}")
    if not isinstance(question, str) or not question.strip() or not isinstance(category, str):
        raise ValueError(f"line {line_number}: question and category must be text")
    if not isinstance(expected_question, str if kind == "rephrasing" else type(None)):
        raise ValueError(f"line {line_number}: a rephrasing, and nothing else, names an expected question")
    return DemoQuestion(question, category, cast(QuestionKind, kind), expected_question)


def _is_usable(key: str, *, answer: str) -> bool:
    if not key or not answer or key in _FRAGMENTS or key in _DAMAGED_CODE:
        return False
    return (key, question_key(answer)) not in _NON_ANSWERS


def _collapse(text: str) -> str:
    return " ".join(text.split())


def _tidy(answer: str) -> str:
    """Normalize white space; the line structure of an answer that holds a code block is part of it."""
    if "```" not in answer:
        return _collapse(answer)
    return "\n".join(line.rstrip() for line in answer.strip().splitlines())
