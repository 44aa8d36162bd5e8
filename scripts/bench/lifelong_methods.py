"""Ways to learn classes in steps, all toward the same class codes, which stay once they are issued."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hashing.class_codes import ClassCodes, Labels
from hashing.config import EncoderConfig
from hashing.label_part import LabelPart, LearnedState, empty_state
from scripts.arguments import CommandError
from scripts.bench.intent_steps import LabelledStep

LABEL_BITS = 64
RETRAIN_EPOCHS = 60
UPDATE_EPOCHS = 10
REHEARSED_ROWS = 2000
"""Stored vectors that methods with a rehearsal may read, drawn anew from all that was stored before."""

_MODALITY = "text"


class StepLearner(Protocol):
    """Learns a step after the other."""

    def learn(self, step: LabelledStep) -> None:
        """Take what a step brings."""

    def values(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 [q, dim] to real-valued class queries, float32 [q, LABEL_BITS]."""

    @property
    def class_codes(self) -> ClassCodes:
        """Those issued so far."""


class Incremental:
    """nearhit's update: the sums of the closed form grow by the step alone."""

    def __init__(self, *, seed: int) -> None:
        self.config = EncoderConfig(label_bits=LABEL_BITS, seed=seed)
        self.state: LearnedState | None = None
        self.head: LabelPart | None = None

    def learn(self, step: LabelledStep) -> None:
        """Add the step."""
        if self.state is None:
            self.state = empty_state(step.rows.shape[1], config=self.config, rows=step.rows)
        self.state, self.head = added(self.state, step.rows, step.row_labels)

    def values(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Class queries."""
        assert self.head is not None, "a step was learned"
        return self.head.values(queries)

    @property
    def class_codes(self) -> ClassCodes:
        """Those issued so far."""
        assert self.state is not None, "a step was learned"
        return self.state.class_codes


class Retrained:
    """The same closed form from nothing, on all rows so far."""

    def __init__(self, *, seed: int) -> None:
        self._seed = seed
        self._steps: list[LabelledStep] = []
        self._learner = Incremental(seed=seed)

    def learn(self, step: LabelledStep) -> None:
        """Train again."""
        self._steps.append(step)
        self._learner = Incremental(seed=self._seed)
        self._learner.learn(joined(self._steps))

    def values(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Class queries."""
        return self._learner.values(queries)

    @property
    def class_codes(self) -> ClassCodes:
        """Those issued so far."""
        return self._learner.class_codes


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientWay:
    """How a tower learns a step. from_nothing: on all rows so far; otherwise with these weights of an update
    (`hashing.deep.update_config.LabelUpdateConfig`)."""

    from_nothing: bool = False
    epochs: int = UPDATE_EPOCHS
    weights: Mapping[str, Any] | None = None


GRADIENT_WAYS = {
    "retrain_tower": GradientWay(from_nothing=True, epochs=RETRAIN_EPOCHS),
    "finetune": GradientWay(weights={"rehearsal": 0.0}),
    "distillation": GradientWay(weights={"rehearsal": 0.0, "distillation": 1.0}),
    "frozen_codes": GradientWay(weights={"central": 0.0, "rehearsal": 0.0, "likelihood": 1.0}),
    "replay": GradientWay(weights={"rehearsal": 1.0}),
}


class GradientLearner:
    """A residual tower toward the class codes, in one of the usual ways; device: torch's name, None: any."""

    def __init__(self, way: GradientWay, *, seed: int, device: str | None = None) -> None:
        try:
            from hashing.deep.labelled import LabelTower
        except ImportError as error:
            raise CommandError("this needs the extra `train`: pip install nearhit[train]") from error
        self._way = way
        self._seed = seed
        self._device = device
        self._steps: list[LabelledStep] = []
        self._tower: LabelTower | None = None

    def learn(self, step: LabelledStep) -> None:
        """Train on the step, or again on everything."""
        from hashing.deep.labelled import LabelledConfig, train_labelled

        self._steps.append(step)
        if self._tower is not None and not self._way.from_nothing:
            self._update(step)
            return
        everything = joined(self._steps)
        epochs = RETRAIN_EPOCHS if self._tower is None else self._way.epochs
        config = LabelledConfig(label_bits=LABEL_BITS, epochs=epochs, seed=self._seed)
        self._tower = train_labelled(
            everything.rows, everything.row_labels, config=config, device=self._device
        )

    def _update(self, step: LabelledStep) -> None:
        from hashing.deep.labelled_update import update_labelled
        from hashing.deep.update_config import LabelUpdateConfig

        assert self._tower is not None and self._way.weights is not None, "a step was learned before"
        stored = joined(self._steps[:-1])
        rng = np.random.default_rng([self._seed, len(self._steps)])
        kept = rng.permutation(len(stored.rows))[:REHEARSED_ROWS]
        if not self._way.weights.get("rehearsal") and not self._way.weights.get("likelihood"):
            kept = kept[:0]
        config = LabelUpdateConfig(epochs=self._way.epochs, seed=self._seed, **self._way.weights)
        self._tower = update_labelled(
            self._tower,
            embeddings=step.rows,
            labels=step.row_labels,
            rehearsal=stored.rows[kept],
            rehearsal_labels=[stored.row_labels[row] for row in kept.tolist()],
            config=config,
            device=self._device,
        )

    def values(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Class queries."""
        assert self._tower is not None, "a step was learned"
        return self._tower.label_map.project(queries)

    @property
    def class_codes(self) -> ClassCodes:
        """Those issued so far."""
        assert self._tower is not None, "a step was learned"
        return self._tower.class_codes


def learners(*, seed: int) -> dict[str, Callable[[], StepLearner]]:
    """What makes a learner of each method."""
    made: dict[str, Callable[[], StepLearner]] = {
        "incremental": lambda: Incremental(seed=seed),
        "retrain": lambda: Retrained(seed=seed),
    }
    for method, way in GRADIENT_WAYS.items():
        made[method] = lambda way=way: GradientLearner(way, seed=seed)  # type: ignore[misc]
    return made


def added(state: LearnedState, rows: NDArray[np.float32], labels: Labels) -> tuple[LearnedState, LabelPart]:
    """The state with these rows, and the label part that it makes."""
    larger = state.add(rows, labels)
    return larger, larger.head(modality=_MODALITY)


def joined(steps: Sequence[LabelledStep]) -> LabelledStep:
    """All of them as one."""
    return LabelledStep(
        rows=np.concatenate([step.rows for step in steps]),
        row_labels=list(chain.from_iterable(step.row_labels for step in steps)),
        queries=np.concatenate([step.queries for step in steps]),
        query_labels=list(chain.from_iterable(step.query_labels for step in steps)),
    )
