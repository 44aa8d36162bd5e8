"""What can go wrong in the index.

IndexFault
├── IndexConfigError        a configuration value is invalid; names the key
├── DimensionError          an array has the wrong shape or dtype
├── InvalidRowsError        an array has the right shape but values that cannot be stored
│   └── DuplicateEntryError one entry id in two rows
├── PathUnavailableError    the asked search path does not exist for the asked partitions
├── StaleChangesError       changes at or below what is already applied
├── BuildInProgressError    another build holds the same root
└── DamagedFileError        a file is missing, foreign, truncated or does not match its checksum
    ├── DamagedSegmentError
    ├── DamagedGraphError
    └── DamagedGenerationError
"""

from pathlib import Path


class IndexFault(Exception):
    """Base of everything that the index raises on purpose."""


class IndexConfigError(IndexFault):
    """A configuration value is invalid."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key


class DimensionError(IndexFault):
    """An array has the wrong shape or dtype."""

    def __init__(self, what: str, *, expected: str, got: str) -> None:
        super().__init__(f"{what}: expected {expected}, got {got}")
        self.what = what
        self.expected = expected
        self.got = got


class InvalidRowsError(IndexFault):
    """Rows hold values that cannot be stored."""


class DuplicateEntryError(InvalidRowsError):
    """One entry id appears in two rows."""

    def __init__(self, entry_ids: list[int]) -> None:
        shown = ", ".join(str(entry_id) for entry_id in entry_ids[:5])
        super().__init__(f"{len(entry_ids)} entry ids appear more than once: {shown}")
        self.entry_ids = entry_ids


class PathUnavailableError(IndexFault):
    """The asked search path does not exist here; `reason` says why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} is not available: {reason}")
        self.path = path
        self.reason = reason


class StaleChangesError(IndexFault):
    """Changes at or below the sequence number that is already applied; nothing was changed."""

    def __init__(self, seq: int, *, applied_seq: int) -> None:
        super().__init__(f"changes of seq {seq} come after seq {applied_seq} was applied")
        self.seq = seq
        self.applied_seq = applied_seq


class BuildInProgressError(IndexFault):
    """Another build holds the same root."""

    def __init__(self, root: Path) -> None:
        super().__init__(f"{root}: another build is running")
        self.root = root


class DamagedFileError(IndexFault):
    """A file is missing, foreign, truncated or does not match its checksum."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class DamagedSegmentError(DamagedFileError):
    """A segment file cannot be trusted."""


class DamagedGraphError(DamagedFileError):
    """A graph file cannot be trusted."""


class DamagedGenerationError(DamagedFileError):
    """A manifest, CURRENT, or what they name cannot be trusted."""
