"""Configuration of one index."""

from dataclasses import dataclass, fields

from index.errors import IndexConfigError

MIN_CODE_BITS = 64
MAX_CODE_BITS = 1024
SHARES = ("cascade_max_pass_rate", "list_recall", "graph_recall")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexConfig:
    """How one cache's index is laid out and searched.

    code_bits: bits of an instance code, 64..1024. label_bits: bits of a label code, 0 (none) or 64..1024.
    exact_limit: rows of a segment up to which floats are scanned when there is no query code.
    scan_limit: rows of a partition above which a graph is preferred to scanning codes.
    gather_limit: length of a list of allowed ids up to which their vectors are read directly.
    candidate_count: codes that are reranked at least; candidates_per_result: and per asked result.
    exact_count: candidates of a sealed segment measured on float16 at least, after int8;
    exact_per_result: and per asked result.
    cascade_min_rows: rows of a segment from which a threshold's radii are used to skip codes;
    cascade_max_pass_rate: unless the radii of the first bits let more than this share of the rows through.
    lists_min_rows: rows from which a sealed segment gets inverted lists; rows_per_list: how long they are;
    probe_count: lists that a query searches at least; list_recall: share of the nearest rows whose lists a
    query is to search, unless it asks for more. graph_recall: recall of HNSW; a query that asks for more gets
    a scan.
    shared_scan_queries: queries of one call from which one pass over all codes is cheaper than their lists.
    hnsw_m, hnsw_ef_construction, hnsw_ef_search: as in Malkov & Yashunin 2018; hnsw_seed: of the build.

    Raises: IndexConfigError.
    """

    code_bits: int = 256
    label_bits: int = 0
    exact_limit: int = 20_000
    scan_limit: int = 1_000_000
    gather_limit: int = 1_024
    candidate_count: int = 256
    candidates_per_result: int = 32
    exact_count: int = 32
    exact_per_result: int = 3
    cascade_min_rows: int = 50_000
    cascade_max_pass_rate: float = 0.01
    lists_min_rows: int = 200_000
    rows_per_list: int = 1_024
    probe_count: int = 16
    list_recall: float = 0.98
    graph_recall: float = 0.99
    shared_scan_queries: int = 8
    hnsw_m: int = 16
    hnsw_ef_construction: int = 128
    hnsw_ef_search: int = 128
    hnsw_seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in SHARES:
                if not isinstance(value, float) or not 0 <= value <= 1:
                    raise IndexConfigError(field.name, f"must be a number in [0, 1], is {value!r}")
            elif not isinstance(value, int) or isinstance(value, bool):
                raise IndexConfigError(field.name, f"must be an integer, is {value!r}")
        if not MIN_CODE_BITS <= self.code_bits <= MAX_CODE_BITS:
            raise IndexConfigError("code_bits", f"must be in 64..1024, is {self.code_bits}")
        if self.label_bits and not MIN_CODE_BITS <= self.label_bits <= MAX_CODE_BITS:
            raise IndexConfigError("label_bits", f"must be 0 or in 64..1024, is {self.label_bits}")
        for key in ("exact_limit", "scan_limit", "gather_limit", "cascade_min_rows", "hnsw_seed"):
            if getattr(self, key) < 0:
                raise IndexConfigError(key, f"must be at least 0, is {getattr(self, key)}")
        for key in (
            *("candidate_count", "candidates_per_result", "exact_count", "exact_per_result"),
            *("lists_min_rows", "rows_per_list", "probe_count", "shared_scan_queries"),
            *("hnsw_ef_construction", "hnsw_ef_search"),
        ):
            if getattr(self, key) < 1:
                raise IndexConfigError(key, f"must be at least 1, is {getattr(self, key)}")
        if self.hnsw_m < 2:
            raise IndexConfigError("hnsw_m", f"must be at least 2, is {self.hnsw_m}")

    def candidates_for(self, k: int) -> int:
        """Codes to rerank for k results."""
        return max(self.candidate_count, self.candidates_per_result * k)

    def exact_for(self, k: int) -> int:
        """Candidates to measure on float16 for k results."""
        return max(self.exact_count, self.exact_per_result * k)
