"""Steps of labelled queries, the figures of a course, and the benchmark through its own door."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hashing.class_codes import ClassCodes
from scripts.arguments import CommandError
from scripts.bench import lifelong
from scripts.bench.intent_steps import LabelledStep, load_steps
from scripts.bench.lifelong import Course, course_metrics, follow

DIM = 16
DOMAINS = {"bank": ["a", "b"], "travel": ["c", "d"], "home": ["e", "f"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six classes of three domains around orthogonal centres, 20 rows and 5 queries of either kind each."""
    rng = np.random.default_rng(0)
    names = [name for own in DOMAINS.values() for name in own]
    splits = ["train"] * 20 + ["val"] * 5 + ["test"] * 5
    rows, intents, parts = [], [], []
    for number, name in enumerate(names):
        noise = 0.1 * rng.standard_normal((len(splits), DIM))
        rows.append(np.eye(DIM)[number] + noise)
        intents += [name] * len(splits)
        parts += splits
    np.savez(
        tmp_path / "intents.npz",
        embeddings=np.concatenate(rows),
        intent=np.array(intents),
        split=np.array(parts),
    )
    (tmp_path / "intent_domains.json").write_text(json.dumps(DOMAINS))
    return tmp_path


def steps_of(folder: Path, *, seed: int = 0) -> list[LabelledStep]:
    return load_steps(folder, seed=seed, tuning=False, query_limit=10_000)


def test_a_step_is_a_domain_and_seeds_draw_their_order(folder: Path) -> None:
    found = [
        ["".join(sorted({name for (name,) in step.row_labels})) for step in steps_of(folder, seed=seed)]
        for seed in range(6)
    ]
    assert {tuple(sorted(own)) for own in found} == {("ab", "cd", "ef")}
    assert len({tuple(own) for own in found}) > 1
    for step in steps_of(folder):
        assert {name for (name,) in step.query_labels} == {name for (name,) in step.row_labels}
        assert (len(step.rows), len(step.queries)) == (40, 10)


def test_without_domains_all_classes_are_dealt_into_steps(folder: Path) -> None:
    (folder / "intent_domains.json").unlink()
    dealt = [name for step in steps_of(folder) for name in sorted({name for (name,) in step.row_labels})]
    assert sorted(dealt) == ["a", "b", "c", "d", "e", "f"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "no object of domains"),
        ("{", "no object of domains"),
        ('{"bank": ["a", "b", "c", "d", "e"]}', "class 'f' is in no domain"),
        ('{"all": ["a", "b", "c", "d", "e", "f"]}', "make 1 steps"),
    ],
)
def test_bad_domains_are_refused(folder: Path, content: str, message: str) -> None:
    (folder / "intent_domains.json").write_text(content)
    with pytest.raises(CommandError, match=message):
        steps_of(folder)


class Forgetful:
    """Answers with the code of the nearest row of the last `memory` steps."""

    def __init__(self, *, memory: int) -> None:
        self.class_codes = ClassCodes.empty(label_bits=64, seed=0)
        self._memory = memory
        self._steps: list[LabelledStep] = []

    def learn(self, step: LabelledStep) -> None:
        self._steps.append(step)
        self.class_codes = self.class_codes.issue(name for (name,) in step.row_labels)

    def values(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        known = self._steps[-self._memory :]
        rows = np.concatenate([step.rows for step in known])
        names = [name for step in known for (name,) in step.row_labels]
        nearest = (queries @ rows.T).argmax(axis=1)
        bits = self.class_codes.bits[[self.class_codes.position(names[row]) for row in nearest.tolist()]]
        return np.where(bits, 1, -1).astype(np.float32)


def test_a_learner_that_remembers_everything_forgets_nothing(folder: Path) -> None:
    course = follow(Forgetful(memory=3), steps_of(folder))
    metrics = course_metrics(course)
    assert metrics == {
        "final_map": 1.0,
        "average_map": 1.0,
        "forgetting": 0.0,
        "backward_transfer": 0.0,
        "stored_bits_changed": 0.0,
    }
    np.testing.assert_array_equal(course.alone, 1.0)


def test_what_a_learner_forgets_is_in_its_figures(folder: Path) -> None:
    course = follow(Forgetful(memory=1), steps_of(folder))
    np.testing.assert_array_equal(np.diagonal(course.maps), 1.0)
    assert np.isnan(course.maps[0, 1:]).all()
    metrics = course_metrics(course)
    lost = 1 - course.maps[-1, :-1].mean()
    assert lost > 0.3
    assert metrics["forgetting"] == pytest.approx(lost)
    assert metrics["backward_transfer"] == pytest.approx(-lost)
    assert metrics["final_map"] == pytest.approx(course.maps[-1].mean())  # as many queries in each step


def test_forgetting_is_from_the_best_a_domain_ever_had() -> None:
    maps = np.array([[0.5, np.nan, np.nan], [0.9, 0.6, np.nan], [0.7, 0.6, 1.0]])
    course = Course(maps, np.ones(3), np.array([0.5, 0.75, 0.8]), stored_bits_changed=0)
    metrics = course_metrics(course)
    assert metrics["forgetting"] == pytest.approx((0.2 + 0.0) / 2)
    assert metrics["backward_transfer"] == pytest.approx((0.2 + 0.0) / 2)
    assert metrics["average_map"] == pytest.approx((0.5 + 0.75 + 0.8) / 3)


def test_map_is_that_of_a_ranking_of_all_rows(folder: Path) -> None:
    steps = steps_of(folder)
    learner = Forgetful(memory=2)
    for step in steps:
        learner.learn(step)
    seen = lifelong.joined(steps)
    found = lifelong._precisions(learner, steps[-1], seen.row_labels)
    bits = learner.class_codes.bits[[learner.class_codes.position(name) for (name,) in seen.row_labels]]
    scores = learner.values(steps[-1].queries) @ np.where(bits, 1.0, -1.0).T
    for query, (name,) in enumerate(steps[-1].query_labels):
        order = np.argsort(-scores[query], kind="stable")
        relevant = np.array([seen.row_labels[row] == (name,) for row in order.tolist()])
        ranks = np.flatnonzero(relevant) + 1
        assert found[query] == pytest.approx(np.mean(np.arange(1, ranks.size + 1) / ranks))


def test_the_benchmark_prints_every_method(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="needs the extra train")
    monkeypatch.setattr(lifelong, "TIMED_REPEATS", 1)
    monkeypatch.setattr(lifelong, "shift_figures", lambda *_, **__: ())
    monkeypatch.setattr("scripts.bench.lifelong_methods.RETRAIN_EPOCHS", 2)
    monkeypatch.setattr("scripts.bench.lifelong_methods.UPDATE_EPOCHS", 1)
    plot = tmp_path / "steps.png"
    arguments = Namespace(
        data=folder, seeds=1, quick=False, json=True, tuning=False, new_embeddings=None, plot=plot
    )
    assert lifelong.run(arguments) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    figures = {(line["metric"], line["method"]): line for line in lines}
    methods = {"incremental", "retrain", *lifelong.GRADIENT_WAYS}
    for metric in ("final_map", "average_map", "forgetting", "backward_transfer", "stored_bits_changed"):
        assert {method for found, method in figures if found == metric} == methods
    assert figures["final_map", "incremental"]["value"] > 0.9
    assert figures["final_map", "incremental"]["rival"] == "retrain"
    assert figures["stored_bits_changed", "incremental"]["value"] == 0
    assert figures["removal_query_bits_differ", "incremental"]["value"] == 0
    assert figures["removal_stored_bits_changed", "incremental"]["value"] == 0
    assert figures["removal_speedup", "incremental"]["value"] > 0
    ratios = [line for line in lines if line["metric"] == "time_ratio"]
    assert {line["rival"] for line in ratios} == {"retrain", "retrain_tower"}
    assert plot.is_file()


def test_the_tower_whose_cpu_time_is_taken_runs_on_the_cpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled = pytest.importorskip("hashing.deep.labelled", reason="needs the extra train")
    devices: list[str | None] = []
    monkeypatch.setattr(labelled, "train_labelled", lambda *_, device=None, **__: devices.append(device))
    monkeypatch.setattr(lifelong, "TIMED_REPEATS", 1)
    list(lifelong._times(steps_of(folder), seed=0, quick=False))
    assert devices == ["cpu"]
