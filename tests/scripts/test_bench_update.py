"""What the benchmark of updates computes besides times."""

import numpy as np
import pytest

from scripts.arguments import CommandError
from scripts.bench.lookups import Lookup, phase_figures, problems
from scripts.bench.update import bits_changed
from scripts.bench.update_rows import LabelledBatch, made_up_rows, split_rows


def test_rows_are_split_by_class_into_known_ones_and_batches_to_come() -> None:
    rows = made_up_rows(quick=True)
    known, batches = split_rows(rows, batches=4)
    coming = {str(label) for batch in batches for label in batch.labels}
    assert len(known) + sum(map(len, batches)) == len(rows)
    assert (len(set(known.labels)), len(coming)) == (20, 10)
    assert coming.isdisjoint(known.labels)
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    assert np.allclose(np.linalg.norm(known.embeddings, axis=1), 1, atol=1e-6)


def test_more_updates_than_rows_to_come_are_refused() -> None:
    rows = LabelledBatch(np.eye(384, dtype=np.float32)[:3], np.array(["a", "b", "c"]))
    with pytest.raises(CommandError, match="1 rows are left for 2 updates"):
        split_rows(rows, batches=2)


@pytest.mark.parametrize(
    ("before", "after", "bits"),
    [
        ((b"\x0f", None), (b"\x0f", b"\x01"), 0),
        ((b"\x0f", b"\x01"), (b"\x0e", b"\x03"), 2),
        ((b"\x0f\xff", None), (None, None), 16),
        ((None, None), (b"\x01", None), 0),
    ],
)
def test_bits_of_stored_codes_that_changed_or_went_are_counted(
    before: tuple[bytes | None, bytes | None], after: tuple[bytes | None, bytes | None], bits: int
) -> None:
    assert bits_changed({1: before}, {1: after, 2: (b"\xff", b"\xff")}) == bits


def test_codes_of_a_row_that_is_gone_count_whole() -> None:
    assert bits_changed({1: (b"\x0f", b"\x01")}, {}) == 16


def test_lookups_are_reported_by_the_phases_that_they_touch() -> None:
    lookups: list[Lookup] = [
        (0.0, 0.010, "g", ""),
        (0.9, 0.200, "g", ""),
        (2.0, 0.030, "g", "no answer"),
        (5.0, 0.010, "g", ""),
    ]
    phases = {"before": (0.0, 1.0), "during": (1.0, 3.0), "swap": (3.0, 4.0)}
    figures = {
        (figure.case, figure.metric): figure
        for figure in phase_figures("update", lookups, phases, case="few", row_count=7)
    }
    assert problems(lookups) == ["no answer"]
    assert figures["few, before", "lookups"].value == figures["few, during", "lookups"].value == 2
    assert figures["few, during", "lookup_max_ms"].value == pytest.approx(200)
    during = figures["few, during", "lookup_p50_ms"]
    assert (during.rival, during.rival_value, during.ratio) == ("before", pytest.approx(105), 105 / 115)
    assert not [case for case, _ in figures if case.endswith("swap")]
