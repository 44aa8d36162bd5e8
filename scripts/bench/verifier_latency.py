"""Print what judging one shortlist takes: `python -m scripts.bench.verifier_latency VERIFIER`.

On one thread, on the questions of a data folder: each call judges another query and its nearest rows. "warm":
every text of the call was prepared before; "new query": all but the query's; "cold": none of them;
"embeddings": no text is known. A line of JSON each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashing.embeddings import unit_rows
from hashing.question_words import spelling
from hashing.verifier import Verifier, load_verifier
from scripts.bench.lines import Figure, print_figure

SHORTLIST = 16
CALLS = 1000
ROWS = 20_000


def main(arguments_of_command: Sequence[str] | None = None) -> None:
    """Measure on the threads that BLAS is given; set OPENBLAS_NUM_THREADS=1 for one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verifier", type=Path, help="a file that dump_verifier wrote")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="default %(default)s")
    arguments = parser.parse_args(arguments_of_command)
    content = arguments.verifier.read_bytes()
    with np.load(arguments.data / "question_pairs.npz") as archive:
        rows = unit_rows(archive["embeddings"][:ROWS].astype(np.float32))
    texts = (arguments.data / "question_pairs.txt").read_text(encoding="utf-8").split("\n")[:ROWS]
    lists = _shortlists(rows)
    verifier = load_verifier(content)
    for case in ("warm", "new query", "cold", "embeddings"):
        nanoseconds = [
            _call(replace(verifier), rows, texts, query, near, case=case) for query, near in enumerate(lists)
        ]
        p10, p50, p99 = np.percentile(nanoseconds, (10, 50, 99)) / 1e6
        for metric, value in (("p10", p10), ("p50", p50), ("p99", p99)):
            figure = Figure(
                bench="verifier_latency",
                case=case,
                metric=f"{metric}_ms",
                method="verifier",
                value=float(value),
                unit="ms",
                n=SHORTLIST,
                batch=1,
                dataset="questions",
            )
            print_figure(figure, as_json=True)


def _call(
    verifier: Verifier,
    rows: NDArray[np.float32],
    texts: Sequence[str],
    query: int,
    near: NDArray[np.intp],
    *,
    case: str,
) -> int:
    """Return the nanoseconds of one judgement by a verifier that has judged nothing, after what `case` says
    was prepared."""
    spelling.cache_clear()
    shortlist = rows[near]
    near_texts = [] if case == "embeddings" else [texts[row] for row in near.tolist()]

    def judge(text: str) -> object:
        return verifier.probabilities(rows[query], shortlist, query_text=text, texts=near_texts)

    if case in ("warm", "new query"):
        judge(texts[query] if case == "warm" else texts[query - 1])
    start = time.perf_counter_ns()
    judge(texts[query])
    return time.perf_counter_ns() - start


def _shortlists(rows: NDArray[np.float32]) -> list[NDArray[np.intp]]:
    """Return the SHORTLIST rows nearest to each of the first CALLS rows, itself left out."""
    cosines = rows[:CALLS] @ rows.T  # [calls, n]
    np.fill_diagonal(cosines, -2)
    return list(np.argpartition(-cosines, SHORTLIST, axis=1)[:, :SHORTLIST])


if __name__ == "__main__":
    main()
