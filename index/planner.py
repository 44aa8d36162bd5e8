"""Which way a segment is searched, and whether what was found supports the decision. Pure functions."""

import math
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from index.config import IndexConfig
from index.errors import PathUnavailableError
from index.list_margins import NEIGHBOURS, RECALLS


class SearchPath(Enum):
    """How the rows of a segment are searched; `cost` orders the paths."""

    CASCADE = "cascade"  # first bits, then all bits, of codes that a row within the threshold can have
    IVF = "ivf"  # the codes in the inverted lists near the query
    SCAN = "scan"  # all codes
    HNSW = "hnsw"  # float graph
    EXACT = "exact"  # every live vector

    @property
    def cost(self) -> int:
        """0 for CASCADE up to 4 for EXACT."""
        return _COSTS[self]


_COSTS = {path: cost for cost, path in enumerate(SearchPath)}


class SegmentTraits(NamedTuple):
    """What a choice depends on, of a segment. Row counts have dead rows in them.

    row_count: of the segment; partition_row_count: of all segments of its partition. has_query_code: the
    query has a code of the segment's encoder. matching_share: of the rows, those that the query's scope and
    list of allowed ids let through, estimated. prefix_pass_rate: share of rows that the radii of the
    threshold are expected to let through on the first bits, None without radii of them and of the whole code.
    """

    row_count: int
    partition_row_count: int
    has_codes: bool
    has_query_code: bool
    has_graph: bool
    has_lists: bool
    matching_share: float
    prefix_pass_rate: float | None


class QueryTraits(NamedTuple):
    """What a choice depends on, of a query.

    k: results wanted. allowed_count: length of the list of allowed ids, None for no list. min_recall: of the
    true nearest that the answer must have, in [0, 1]. query_count: how many queries search the segment
    together, in one pass.
    """

    k: int
    allowed_count: int | None
    min_recall: float
    query_count: int


@lru_cache(maxsize=4_096)
def pass_rate(radius: int, bit_count: int) -> float:
    """Estimate the share of unrelated codes within `radius` bits of a query's, of its first `bit_count` bits.

    Distances of unrelated codes are normal around half of the bits. Their deviation is that of independent
    bits and a tenth more: what ITQ codes of sentence embeddings show (4.2 instead of 4 at 64 bits, 6.2
    instead of 5.7 at 128).
    """
    deviation = 1.1 * math.sqrt(bit_count) / 2
    return 0.5 * math.erfc((bit_count / 2 - radius) / (deviation * math.sqrt(2)))


def prefix_pass_rate(radii: Mapping[int, int] | None, *, code_bits: int) -> float | None:
    """The share of rows that the radii let through on the first bits; None where a radius is missing."""
    if not radii or code_bits not in radii or len(radii) < 2:
        return None
    return min(pass_rate(radius, bits) for bits, radius in radii.items() if bits < code_bits)


def unavailable(path: SearchPath, segment: SegmentTraits) -> str | None:
    """Say why a segment cannot be searched on `path`; None when it can. EXACT is always possible."""
    if path is SearchPath.HNSW:
        return None if segment.has_graph else "rows have no graph"
    if path is SearchPath.EXACT:
        return None
    if not segment.has_codes:
        return "rows have no codes"
    if not segment.has_query_code:
        return "the query has no code of the rows' encoder"
    if path is SearchPath.IVF and not segment.has_lists:
        return "rows have no inverted lists"
    if path is SearchPath.CASCADE and segment.prefix_pass_rate is None:
        return "the query has no threshold with radii of the rows' encoder"
    return None


def plan(
    requested: SearchPath | None, *, segment: SegmentTraits, query: QueryTraits, config: IndexConfig
) -> SearchPath:
    """Choose how one segment is searched; the first rule that applies wins.

    1. The caller's request.
    2. A list of at most `gather_limit` allowed ids, or a demand for more recall than was measured: EXACT.
    3. No query code for the segment's encoder: HNSW where there is a graph, its recall will do and there are
       more than `exact_limit` rows, else EXACT.
    4. A threshold whose radii let few enough rows through, from `cascade_min_rows` rows on: CASCADE.
    5. Lists, no more results than their margins were measured for, most rows let through by scope and allowed
       ids, and not so many queries that one pass over all codes is cheaper: IVF.
    6. A graph, its recall will do, no lists, and a partition beyond `scan_limit` rows: HNSW.
    7. SCAN.

    Raises: PathUnavailableError, naming why.
    """
    if requested is not None:
        reason = unavailable(requested, segment)
        if reason is not None:
            raise PathUnavailableError(requested.value, reason)
        return requested
    if query.min_recall > RECALLS[-1] or (
        query.allowed_count is not None and query.allowed_count <= config.gather_limit
    ):
        return SearchPath.EXACT
    graph_will_do = segment.has_graph and query.min_recall <= config.graph_recall
    if not (segment.has_codes and segment.has_query_code):
        return (
            SearchPath.HNSW if graph_will_do and segment.row_count > config.exact_limit else SearchPath.EXACT
        )
    if (
        segment.prefix_pass_rate is not None
        and segment.prefix_pass_rate <= config.cascade_max_pass_rate
        and segment.row_count >= config.cascade_min_rows
    ):
        return SearchPath.CASCADE
    if (
        segment.has_lists
        and query.k <= NEIGHBOURS
        and segment.matching_share >= 0.5
        and query.query_count < config.shared_scan_queries
    ):
        return SearchPath.IVF
    if graph_will_do and not segment.has_lists and segment.partition_row_count > config.scan_limit:
        return SearchPath.HNSW
    return SearchPath.SCAN


def scan_proves_miss(
    *, wanted_count: int, candidate_count: int, worst_hamming_distance: int | None, radius: int | None
) -> bool:
    """Tell whether the candidates of a scan, none within the threshold, prove that no live row is.

    They do when no live row was cut, or when the worst candidate is farther than the encoder's calibrated
    radius for the threshold, because rows beyond it are then not within the threshold either. Without a
    radius a cut list proves nothing. Distances and radius are in bits.
    """
    if candidate_count < wanted_count:
        return True
    if radius is None or worst_hamming_distance is None:
        return False
    return worst_hamming_distance > radius


def graph_falls_short(*, live_count: int, found_count: int, k: int) -> bool:
    """Tell whether a graph search found fewer live rows than were asked for while there are more."""
    return found_count < min(k, live_count)
