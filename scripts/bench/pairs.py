"""Is it the same question? Codes, a verifier and their rivals on labelled pairs that nothing was chosen on.

The folder holds question_pairs.npz (`embeddings` [n, dim], `pairs` [p, 3] of row, row, 1 or 0) and, for
what reads the text, question_pairs.txt (line i is the text of row i). For each seed a fifth of the pairs is
held out by connected component: no question of it, nor one that any chain of pairs links with it, is seen in
training. Methods: `cosine` of the embeddings; `itq` and `learned` codes against codes, `..._asymmetric` a
real-valued query against codes; `verifier`, and `verifier_embeddings` where it does not know the texts;
with --text-tower `text_tower`, the cosine of embeddings learned from the text, and `text_tower_codes`.

wrong_hits_at_20: share of wrong pairs among the fifth that scores highest. hit_rate_at_1_error: share of
pairs that can be served before 1% of all pairs are served wrongly.
"""

import argparse
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hashing.embeddings import signs
from hashing.metrics import hit_rate_at_error, pair_auc, wrong_share_at_hit_rate
from hashing.projection import fit_itq
from hashing.verifier import Verifier
from scripts.arguments import positive_integer
from scripts.bench.lines import Figure, add_bench_arguments
from scripts.bench.pair_folds import PairsFold, Scored, code_cosines, load_fold
from scripts.bench.plot import write_curves
from scripts.bench.rule_made import accepted_shares
from scripts.bench.seeds import SeededFigures, print_means
from scripts.bench.text_tower import score_text_tower

if TYPE_CHECKING:
    from hashing.inference import Encoder

BITS = (64, 128, 256)
HIT_RATE = 0.2
ERROR_RATE = 0.01
ITQ_ITERATIONS = 50
RIVAL = "cosine"
CURVE_HIT_RATES = np.linspace(0.05, 0.5, 10)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    add_bench_arguments(parser)
    parser.add_argument("--data", type=Path, required=True, help="folder of question_pairs.npz")
    parser.add_argument("--seeds", type=positive_integer, default=3, help="splits and trainings (default 3)")
    parser.add_argument(
        "--rules", action="store_true", help="also questions made by rule: reversed, negated, renumbered"
    )
    parser.add_argument(
        "--text-tower", action="store_true", help="also a tower that learns from the text, minutes a seed"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="precision over hit rate, PNG and SVG")


def run(arguments: argparse.Namespace) -> int:
    """Measure."""
    figures, curves = SeededFigures(), Curves()
    for seed in range(1 if arguments.quick else arguments.seeds):
        fold = load_fold(arguments.data, seed=seed, quick=arguments.quick)
        verifier = train_fold_verifier(fold)
        if arguments.rules:
            held_out = np.unique(fold.test[:, :2]).tolist()
            for figure in accepted_shares(verifier, [fold.texts[row] for row in held_out], seed=seed):
                figures.add(figure)
        scores = score_all(fold, verifier)
        if arguments.text_tower:
            scores = chain(scores, score_text_tower(fold, bits=BITS))
        for scored in scores:
            curves.add(scored, fold)
            for metric, value in _metrics(scored, fold).items():
                figures.add(
                    Figure(
                        bench="pairs",
                        case="held-out components",
                        metric=metric,
                        method=scored.method,
                        value=value,
                        unit="share",
                        dataset="question_pairs",
                        n=len(fold.test),
                        bits=scored.bits,
                    )
                )
    print_means(figures, rival=RIVAL, as_json=arguments.json, lower_is_better=("wrong_hits_at_20",))
    if arguments.plot is not None:
        curves.write(arguments.plot)
    return 0


def score_all(fold: PairsFold, verifier: Verifier) -> Iterator[Scored]:
    """Every method's scores of the fold's test pairs."""
    first, second = fold.rows[fold.test[:, 0]], fold.rows[fold.test[:, 1]]
    yield Scored(method="cosine", bits=None, scores=np.einsum("pd,pd->p", first, second))
    kept, pairs = fold.seen()
    for bits in BITS:
        projection = fit_itq(fold.rows[kept], code_bits=bits, iterations=ITQ_ITERATIONS, seed=fold.seed)
        queries, stored = projection.project(first), projection.project(second)
        yield Scored(method="itq", bits=bits, scores=code_cosines(signs(queries), signs(stored)))
        yield Scored(method="itq_asymmetric", bits=bits, scores=code_cosines(queries, signs(stored)))
    encoder = _train_encoder(fold, kept, pairs)
    scorer = encoder.pair_scorer
    assert scorer is not None
    queries, stored = encoder.instance_values(first), encoder.instance_values(second)
    for bits in BITS:
        codes = scorer.code_logits(queries > 0, stored > 0, count=bits)
        yield Scored(method="learned", bits=bits, scores=codes)
        logits = scorer.logits(queries, stored > 0, count=bits)
        yield Scored(method="learned_asymmetric", bits=bits, scores=logits)
    yield Scored(method="verifier_embeddings", bits=None, scores=_verify(fold, verifier, with_texts=False))
    yield Scored(method="verifier", bits=None, scores=_verify(fold, verifier, with_texts=True))


def _train_encoder(fold: PairsFold, kept: NDArray[np.int64], pairs: NDArray[np.int64]) -> "Encoder":
    from hashing.deep.config import parse_config, read_preset
    from hashing.deep.training import train
    from hashing.deep.training_set import TrainingSet

    config = parse_config(read_preset("pairs"), code_bits=max(BITS), seed=fold.seed)
    return train(TrainingSet(embeddings={"text": fold.rows[kept]}, pairs=pairs), config=config).encoder


def train_fold_verifier(fold: PairsFold) -> Verifier:
    """A verifier of the fold's training pairs, with texts where they are known."""
    from hashing.deep.verifier import VerifierConfig, train_verifier

    kept, pairs = fold.seen()
    texts = [fold.texts[row] for row in kept.tolist()] if any(fold.texts) else None
    return train_verifier(fold.rows[kept], pairs, texts=texts, config=VerifierConfig(seed=fold.seed))


def _verify(fold: PairsFold, verifier: Verifier, *, with_texts: bool) -> NDArray[np.float64]:
    """The probabilities that it gives the test pairs."""
    known = fold.texts if with_texts else [""] * len(fold.rows)
    return np.array(
        [
            verifier.probabilities(
                fold.rows[first], fold.rows[[second]], query_text=known[first], texts=[known[second]]
            )[0]
            for first, second, _ in fold.test.tolist()
        ]
    )


def _metrics(scored: Scored, fold: PairsFold) -> dict[str, float]:
    return {
        "auc": pair_auc(scored.scores, fold.similar),
        "wrong_hits_at_20": wrong_share_at_hit_rate(scored.scores, fold.similar, hit_rate=HIT_RATE),
        "hit_rate_at_1_error": hit_rate_at_error(scored.scores, fold.similar, error=ERROR_RATE),
    }


class Curves:
    """Precision over hit rate of each method, mean over seeds."""

    def __init__(self) -> None:
        self._precisions: dict[str, list[NDArray[np.float64]]] = {}

    def add(self, scored: Scored, fold: PairsFold) -> None:
        """Take one seed's scores; of codes those of the widest."""
        if scored.bits in (None, max(BITS)):
            order = np.argsort(-scored.scores, kind="stable")
            hits = np.round(CURVE_HIT_RATES * len(order)).astype(np.intp)
            right = np.cumsum(fold.similar[order])[hits - 1]
            self._precisions.setdefault(scored.method, []).append(right / hits)

    def write(self, path: Path) -> None:
        """Draw them, PNG and SVG."""
        points = {
            method: list(zip(CURVE_HIT_RATES.tolist(), np.mean(runs, axis=0).tolist(), strict=True))
            for method, runs in self._precisions.items()
        }
        write_curves(
            points, path, title="The same question?", x_name="hit rate", y_name="precision of the hits"
        )
