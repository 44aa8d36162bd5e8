"""The same figures measured again with other seeds: their mean and how far they spread."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev

from scripts.bench.lines import Figure, print_figure

_ASYMMETRIC = "_asymmetric"


@dataclass(slots=True)
class SeededFigures:
    """Figures of several seeds, in the order in which they first came."""

    _first: dict[tuple[object, ...], Figure] = field(default_factory=dict)
    _values: dict[tuple[object, ...], list[float]] = field(default_factory=dict)

    def add(self, figure: Figure) -> None:
        """Take the figure of one seed; those of equal case, metric, method, dataset and bits are one."""
        key = (figure.case, figure.metric, figure.method, figure.dataset, figure.bits)
        self._first.setdefault(key, figure)
        self._values.setdefault(key, []).append(figure.value)

    def means(self) -> Iterator[Figure]:
        """Each figure's mean over its seeds."""
        for key, values in self._values.items():
            yield replace(self._first[key], value=fmean(values), seeds=len(values))

    def spreads(self) -> Iterator[Figure]:
        """Each figure's sample standard deviation, as metric `<metric>_spread`; none of a single seed."""
        for key, values in self._values.items():
            if len(values) > 1:
                first = self._first[key]
                yield replace(first, metric=f"{first.metric}_spread", value=stdev(values), seeds=len(values))


def print_means(
    figures: SeededFigures, *, rival: str, as_json: bool, lower_is_better: Collection[str] = ()
) -> None:
    """Print the means, each beside that of the method `rival` in the same case and width, then the spreads.

    A method NAME_asymmetric stands beside RIVAL_asymmetric where there is one: the same kind of query.
    lower_is_better: metrics whose ratio is the rival's value over the method's.
    """
    means = list(figures.means())
    values = {(_place(figure), figure.method): figure.value for figure in means}
    methods = {figure.method for figure in means}
    for figure in means:
        beside = rival
        if figure.method.endswith(_ASYMMETRIC) and rival + _ASYMMETRIC in methods:
            beside = rival + _ASYMMETRIC
        value = values.get((_place(figure), beside))
        if value is None:  # a rival without codes stands beside every width
            value = values.get((_place(replace(figure, bits=None)), rival))
        if value is not None and figure.method != beside:
            better, worse = (
                (value, figure.value) if figure.metric in lower_is_better else (figure.value, value)
            )
            ratio = better / worse if worse else None
            figure = replace(figure, rival=beside, rival_value=value, ratio=ratio)
        print_figure(figure, as_json=as_json)
    for figure in figures.spreads():
        print_figure(figure, as_json=as_json)


def _place(figure: Figure) -> tuple[object, ...]:
    return figure.case, figure.metric, figure.dataset, figure.bits
