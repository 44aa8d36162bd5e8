"""Which way a segment is searched, and whether what was found supports the decision. Pure functions."""

from enum import Enum

from index.config import IndexConfig
from index.errors import PathUnavailableError


class SearchPath(Enum):
    """How the rows of a segment are searched; `cost` orders the paths."""

    SCAN = "scan"  # all codes, then rerank of the nearest on floats
    HNSW = "hnsw"  # float graph
    EXACT = "exact"  # every live vector

    @property
    def cost(self) -> int:
        """0 for SCAN, 1 for HNSW, 2 for EXACT."""
        return list(SearchPath).index(self)


def unavailable(path: SearchPath, *, has_codes: bool, has_query_code: bool, has_graph: bool) -> str | None:
    """Say why a segment cannot be searched on `path`; None when it can. EXACT is always possible."""
    if path is SearchPath.SCAN and not has_codes:
        return "rows have no codes"
    if path is SearchPath.SCAN and not has_query_code:
        return "the query has no code of the rows' encoder"
    if path is SearchPath.HNSW and not has_graph:
        return "rows have no graph"
    return None


def plan(
    requested: SearchPath | None,
    *,
    row_count: int,
    partition_row_count: int,
    has_codes: bool,
    has_query_code: bool,
    has_graph: bool,
    allowed_count: int | None,
    config: IndexConfig,
) -> SearchPath:
    """Choose how one segment is searched; the first rule that applies wins.

    1. The caller's request.
    2. A list of at most `gather_limit` allowed ids: EXACT over those rows.
    3. No query code for the segment's encoder: HNSW where there is a graph and more than `exact_limit` rows,
       else EXACT.
    4. A partition beyond `scan_limit` rows with a graph: HNSW.
    5. SCAN.

    row_count: of the segment; partition_row_count: of all segments of its partition, dead rows included.
    allowed_count: length of the list of allowed ids, None for no list.
    Raises: PathUnavailableError, naming why.
    """
    if requested is not None:
        reason = unavailable(
            requested, has_codes=has_codes, has_query_code=has_query_code, has_graph=has_graph
        )
        if reason is not None:
            raise PathUnavailableError(requested.value, reason)
        return requested
    if allowed_count is not None and allowed_count <= config.gather_limit:
        return SearchPath.EXACT
    if not (has_codes and has_query_code):
        return SearchPath.HNSW if has_graph and row_count > config.exact_limit else SearchPath.EXACT
    if has_graph and partition_row_count > config.scan_limit:
        return SearchPath.HNSW
    return SearchPath.SCAN


def scan_proves_miss(
    *, live_count: int, candidate_count: int, worst_hamming_distance: int | None, radius: int | None
) -> bool:
    """Tell whether the candidates of a scan, none within the threshold, prove that no live row is.

    They do when no live row was cut, or when the worst candidate is farther than the encoder's calibrated
    radius for the threshold, because rows beyond it are then not within the threshold either. Without a
    radius a cut list proves nothing. Distances and radius are in bits.
    """
    if candidate_count >= live_count:
        return True
    if radius is None or worst_hamming_distance is None:
        return False
    return worst_hamming_distance > radius


def graph_falls_short(*, live_count: int, found_count: int, k: int) -> bool:
    """Tell whether a graph search found fewer live rows than were asked for while there are more."""
    return found_count < min(k, live_count)
