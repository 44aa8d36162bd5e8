"""Print how well a verifier tells pairs apart: `python -m scripts.bench.verifier_pairs --data DIR`.

Each seed holds out a fifth of the pairs by component and trains on the rest; with --tuning an eighth of the
rest is held out of it instead, and the test part is not read. Then, of the held-out part: AUC, wrong share
among the best 20% and the hit rate at 1% wrong of all, of the cosine, of the verifier on embeddings alone and
with texts. With --rules also which share of texts made by rule is accepted (needs the extra `minilm`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashing.counterfactuals import RULES, Counterfactual, counterfactuals
from hashing.deep.pairs import split_pairs
from hashing.deep.verifier import VerifierConfig, train_verifier
from hashing.embeddings import unit_rows
from hashing.metrics import hit_rate_at_error, pair_auc, wrong_share_at_hit_rate
from hashing.verifier import Verifier, dump_verifier
from scripts.bench.lines import Figure, print_figure

TEST_SHARE, TUNING_SHARE = 0.2, 0.125
COSINE_THRESHOLD = 0.9
PER_RULE = 300
NEAR = 16


def main(arguments_of_command: Sequence[str] | None = None) -> None:
    """Train and measure for each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of question_pairs.npz and .txt")
    parser.add_argument("--seeds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--tuning", action="store_true", help="hold out of the training part, read no test")
    parser.add_argument("--rules", action="store_true", help="also texts made by rule")
    parser.add_argument("--save", type=Path, help="keep the first seed's verifier in this file")
    arguments = parser.parse_args(arguments_of_command)
    with np.load(arguments.data / "question_pairs.npz") as archive:
        rows, pairs = unit_rows(archive["embeddings"].astype(np.float32)), archive["pairs"].astype(np.int64)
    texts = (arguments.data / "question_pairs.txt").read_text(encoding="utf-8").split("\n")[: len(rows)]
    for seed in range(arguments.seeds):
        rng = np.random.default_rng(seed)
        part = split_pairs(pairs, row_count=len(rows), validation_share=TEST_SHARE, rng=rng)
        if arguments.tuning:
            rng = np.random.default_rng(seed + 100)
            part = split_pairs(part.training, row_count=len(rows), validation_share=TUNING_SHARE, rng=rng)
        verifier = train_verifier(rows, part.training, texts=texts, config=VerifierConfig(seed=seed))
        if arguments.save is not None and seed == 0:
            arguments.save.write_bytes(dump_verifier(verifier))
        _print_pairs(verifier, rows, texts, part.validation, seed=seed)
        if arguments.rules:
            chosen = [texts[row] for row in np.unique(part.validation[:, :2]).tolist()]
            _print_rules(verifier, list(counterfactuals(chosen, np.random.default_rng(seed))), seed=seed)
        _print_candidates(verifier, rows, texts, part.validation, seed=seed)


def _print_pairs(
    verifier: Verifier,
    rows: NDArray[np.float32],
    texts: Sequence[str],
    pairs: NDArray[np.int64],
    *,
    seed: int,
) -> None:
    same = pairs[:, 2] == 1
    scores = {
        "cosine": np.einsum("pd,pd->p", rows[pairs[:, 0]], rows[pairs[:, 1]]),
        "embedding part": np.array(
            [verifier.probabilities(rows[a], rows[b : b + 1])[0] for a, b, _ in pairs]
        ),
        "verifier": np.array(
            [
                verifier.probabilities(rows[a], rows[b : b + 1], query_text=texts[a], texts=[texts[b]])[0]
                for a, b, _ in pairs
            ]
        ),
    }
    for method, own in scores.items():
        figures = {
            "auc": pair_auc(own, same),
            "wrong_hits_at_20": wrong_share_at_hit_rate(own, same, hit_rate=0.2),
            "hit_rate_at_1_error": hit_rate_at_error(own, same, error=0.01),
        }
        for metric, value in figures.items():
            _print(f"seed {seed}", metric, method, value, count=len(pairs))
    error = float(np.mean((scores["verifier"] - same) ** 2))
    _print(f"seed {seed}", "brier", "verifier", error, count=len(pairs))
    for least in (0.5, 0.8, 0.9):
        chosen = scores["verifier"] >= least
        if chosen.any():
            _print(f"seed {seed}, P >= {least}", "hit_rate", "verifier", chosen.mean(), count=len(pairs))
            wrong = float((~same[chosen]).mean())
            _print(f"seed {seed}, P >= {least}", "wrong_share", "verifier", wrong, count=len(pairs))


def _print_rules(verifier: Verifier, made: Sequence[Counterfactual], *, seed: int) -> None:
    """Print, of each rule, the share of the first PER_RULE texts that are accepted."""
    from service.embedder_process import load_minilm

    embed = load_minilm()
    for kind, (_, same) in RULES.items():
        own = [each for each in made if each.kind == kind][:PER_RULE]
        if not own:
            continue
        first = embed([each.original for each in own])
        second = embed([each.changed for each in own])
        cosines = np.einsum("pd,pd->p", first, second)
        judged = np.array(
            [
                verifier.probabilities(
                    first[k], second[k : k + 1], query_text=each.original, texts=[each.changed]
                )[0]
                for k, each in enumerate(own)
            ]
        )
        case = f"seed {seed}, {kind} ({'same' if same else 'not same'})"
        near = float((cosines >= COSINE_THRESHOLD).mean())
        _print(case, "accepted", "cosine distance <= .10", near, count=len(own))
        for least in (0.5, 0.8):
            _print(case, "accepted", f"verifier P >= {least}", (judged >= least).mean(), count=len(own))


def _print_candidates(
    verifier: Verifier,
    rows: NDArray[np.float32],
    texts: Sequence[str],
    pairs: NDArray[np.int64],
    *,
    seed: int,
) -> None:
    """Print how often the best of the NEAR nearest rows is the one labelled the same, by cosine and by P.

    Of the held-out rows with such a partner, among all held-out rows. Other candidates are unlabelled, so
    that what is found besides may be right too: the figures compare two orders, they are no error rates.
    """
    held = np.unique(pairs[:, :2])
    local = np.searchsorted(held, pairs[pairs[:, 2] == 1, :2])
    near_first, near_best, found = [], [], 0
    for query, partner in local.tolist():
        cosines = rows[held] @ rows[held[query]]
        cosines[query] = -2
        near = np.argsort(-cosines, kind="stable")[:NEAR]
        if partner not in near:
            continue
        found += 1
        chosen = held[near]
        judged = verifier.probabilities(
            rows[held[query]],
            rows[chosen],
            query_text=texts[held[query]],
            texts=[texts[row] for row in chosen.tolist()],
        )
        near_first.append(near[0] == partner)
        near_best.append(near[int(np.argmax(judged))] == partner)
    case = f"seed {seed}, partner among {NEAR} nearest"
    _print(case, "partner_first", "cosine", float(np.mean(near_first)), count=found)
    _print(case, "partner_first", "verifier", float(np.mean(near_best)), count=found)


def _print(case: str, metric: str, method: str, value: float, *, count: int) -> None:
    figure = Figure(
        bench="verifier_pairs",
        case=case,
        metric=metric,
        method=method,
        value=float(value),
        unit="share",
        dataset="questions",
        n=count,
    )
    print_figure(figure, as_json=True)


if __name__ == "__main__":
    main()
