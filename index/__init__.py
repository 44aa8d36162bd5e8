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
from index.growing_segment import GrowingSegment
from index.hamming import hamming_distances, nearest_by_score
from index.hnsw import VectorGraph
from index.kernels import asymmetric_scores, cosine_distances, nearest_codes
from index.lists import InvertedLists
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
from index.planner import QueryTraits, SearchPath, SegmentTraits, plan
from index.requests import Changes, Match, Partition, SearchRequest, SearchResult
from index.rows import NEVER, TOMBSTONE, Rows, SegmentKey, SegmentView
from index.sealed_segment import SealedSegment
from index.segment import Segment
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
    "InvertedLists",
    "Manifest",
    "Match",
    "Partition",
    "PartitionFacts",
    "PathUnavailableError",
    "QueryTraits",
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
    "SegmentTraits",
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
