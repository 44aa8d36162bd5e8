"""Configuration of one index."""

from dataclasses import dataclass, fields

from index.errors import IndexConfigError

MIN_CODE_BITS = 64
MAX_CODE_BITS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexConfig:
    """How one cache's index is laid out and searched.

    code_bits: bits of an instance code, 64..1024. label_bits: bits of a label code, 0 (none) or 64..1024.
    exact_limit: rows of a segment up to which floats are scanned when there is no query code.
    scan_limit: rows of a partition above which a graph is preferred to scanning codes.
    gather_limit: length of a list of allowed ids up to which their vectors are read directly.
    candidate_count: codes that are reranked at least; candidates_per_result: and per asked result.
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
    hnsw_m: int = 16
    hnsw_ef_construction: int = 128
    hnsw_ef_search: int = 128
    hnsw_seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise IndexConfigError(field.name, f"must be an integer, is {value!r}")
        if not MIN_CODE_BITS <= self.code_bits <= MAX_CODE_BITS:
            raise IndexConfigError("code_bits", f"must be in 64..1024, is {self.code_bits}")
        if self.label_bits and not MIN_CODE_BITS <= self.label_bits <= MAX_CODE_BITS:
            raise IndexConfigError("label_bits", f"must be 0 or in 64..1024, is {self.label_bits}")
        for key in ("exact_limit", "scan_limit", "gather_limit", "hnsw_seed"):
            if getattr(self, key) < 0:
                raise IndexConfigError(key, f"must be at least 0, is {getattr(self, key)}")
        for key in ("candidate_count", "candidates_per_result", "hnsw_ef_construction", "hnsw_ef_search"):
            if getattr(self, key) < 1:
                raise IndexConfigError(key, f"must be at least 1, is {getattr(self, key)}")
        if self.hnsw_m < 2:
            raise IndexConfigError("hnsw_m", f"must be at least 2, is {self.hnsw_m}")

    def candidates_for(self, k: int) -> int:
        """Codes to rerank for k results."""
        return max(self.candidate_count, self.candidates_per_result * k)
