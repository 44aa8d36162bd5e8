"""Find: bits -> entries. Packed codes, exact vectors and float graphs behind one index per cache."""

from index.builder import BuildReport, build_generation
from index.check import check_generation
from index.codes import pack, unpack, word_count
from index.config import IndexConfig
from index.errors import (
    BuildInProgressError,
    DamagedFileError,
    DamagedGenerationError,
    DamagedGraphError,
    DamagedSegmentError,
    DimensionError,
    DuplicateEntryError,
    IndexConfigError,
    IndexFault,
    InvalidRowsError,
    PathUnavailableError,
    StaleChangesError,
)
from index.facts import IndexFacts, PartitionFacts, SegmentFacts
from index.hamming import asymmetric_scores, hamming_distances, nearest_by_score, nearest_codes
from index.hnsw import VectorGraph
from index.manifest import (
    GraphEntry,
    Manifest,
    SegmentEntry,
    activate,
    current_generation,
    open_generation,
    prune,
    read_manifest,
    write_manifest,
)
from index.planner import SearchPath, plan
from index.requests import Changes, Match, Partition, SearchRequest, SearchResult
from index.rerank import cosine_distances
from index.rows import NEVER, TOMBSTONE, Rows, SegmentKey, SegmentView
from index.segment import GrowingSegment, SealedSegment, Segment
from index.segment_file import SegmentFile, read_segment, write_segment
from index.vector_index import VectorIndex

__all__ = [
    "NEVER",
    "TOMBSTONE",
    "BuildInProgressError",
    "BuildReport",
    "Changes",
    "DamagedFileError",
    "DamagedGenerationError",
    "DamagedGraphError",
    "DamagedSegmentError",
    "DimensionError",
    "DuplicateEntryError",
    "GraphEntry",
    "GrowingSegment",
    "IndexConfig",
    "IndexConfigError",
    "IndexFacts",
    "IndexFault",
    "InvalidRowsError",
    "Manifest",
    "Match",
    "Partition",
    "PartitionFacts",
    "PathUnavailableError",
    "Rows",
    "SealedSegment",
    "SearchPath",
    "SearchRequest",
    "SearchResult",
    "Segment",
    "SegmentEntry",
    "SegmentFacts",
    "SegmentFile",
    "SegmentKey",
    "SegmentView",
    "StaleChangesError",
    "VectorGraph",
    "VectorIndex",
    "activate",
    "asymmetric_scores",
    "build_generation",
    "check_generation",
    "cosine_distances",
    "current_generation",
    "hamming_distances",
    "nearest_by_score",
    "nearest_codes",
    "open_generation",
    "pack",
    "plan",
    "prune",
    "read_manifest",
    "read_segment",
    "unpack",
    "word_count",
    "write_manifest",
    "write_segment",
]
