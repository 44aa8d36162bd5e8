"""Whether an updated encoder may serve: the gate of each modality that has label parts, as one verdict."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from hashing.inference import Encoder
from hashing.label_gate import LabelGateReport, evaluate_label_update
from hashing.trainer import Progress
from service.config import UpdateConfig
from service.update_rows import ArrivedRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """reasons: why the encoder is rejected; empty: it is accepted. figures: what the gate has measured, by
    name, of the encoder's first modality with labels. other_figures: of the others, as "text.old_map_before".
    """

    reasons: tuple[str, ...]
    stored_bits_changed: int
    figures: dict[str, float]
    other_figures: dict[str, float]

    @property
    def accepted(self) -> bool:
        """Whether no modality objects."""
        return not self.reasons


def judge_update(
    parent: Encoder,
    child: Encoder,
    arrived: Mapping[str, ArrivedRows],
    *,
    config: UpdateConfig,
    progress: Progress,
) -> Verdict:
    """Judge each modality that the child has a label part for, by rows that no encoder has learned.

    progress: told of "judge", in queries of one modality after the other; may raise to stop.
    """
    gates = {
        modality: evaluate_label_update(
            parent,
            child,
            old_rows=arrived[modality].old_for_gate(parent),
            new_rows=arrived[modality].new_for_gate(most=config.max_gate_rows),
            modality=modality,
            map_tolerance=config.max_map_drop,
            flip_tolerance=config.max_flips,
            progress=progress,
        )
        for modality in child.label_modalities
    }
    (_, first), *others = gates.items()
    reasons = [f"{modality}: {reason}" for modality, gate in others for reason in gate.reasons]
    return Verdict(
        reasons=(*first.reasons, *reasons),
        stored_bits_changed=sum(gate.stored_bits_changed for gate in gates.values()),
        figures=_figures(first),
        other_figures={
            f"{modality}.{name}": value for modality, gate in others for name, value in _figures(gate).items()
        },
    )


def _figures(gate: LabelGateReport) -> dict[str, float]:
    """What the gate has measured, by name."""
    measured = {name: value for name, value in asdict(gate).items() if isinstance(value, float)}
    return {name: value for name, value in measured.items() if not np.isnan(value)}
