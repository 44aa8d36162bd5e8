import json
import zlib

import numpy as np
import pytest
from index_rows import CODE_BITS, CONFIG, ENCODER, KEY, LABEL_BITS, config, encode, make_rows, unit_vectors

from index import (
    BuildInProgressError,
    DamagedFileError,
    DamagedGenerationError,
    DamagedGraphError,
    DimensionError,
    IndexConfig,
    InvalidRowsError,
    SearchPath,
    SearchRequest,
    SegmentKey,
    activate,
    build_generation,
    check_generation,
    current_generation,
    open_generation,
    prune,
    read_manifest,
    read_segment,
    write_manifest,
    write_segment,
)
from index.builder import PAYLOAD_OVERHEAD_BYTES
from index.manifest import build_lock, last_generation_number, remove_generations

OTHER = SegmentKey(2, "text", None)
MANY = 1 << 30


def build(root, batches, **changes):
    usual = {
        "cache": "shop",
        "config": CONFIG,
        "watermark": 5,
        "with_graph": False,
        "memory_limit_bytes": MANY,
        "keep": 9,
    }
    return build_generation(root, batches=batches, **(usual | changes))


def sample_batches():
    yield KEY, make_rows([9, 3, 27], seed=1)
    yield OTHER, make_rows([4, 8], seed=2, with_codes=False)
    yield KEY, make_rows([1, 30], seed=3)


@pytest.fixture
def root(tmp_path):
    build(tmp_path, sample_batches(), with_graph=True)
    return tmp_path


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_built_generation_is_current_and_serves_every_row(root):
    assert current_generation(root) == "gen-00000001"
    index = open_generation(root, "gen-00000001", config=CONFIG, cache="shop")
    assert index.live_ids().tolist() == [1, 3, 4, 8, 9, 27, 30]
    assert (index.applied_seq, index.generation) == (5, "gen-00000001")
    vector = make_rows([9, 3, 27], seed=1).vectors[1].astype(np.float32)
    result = index.search(
        SearchRequest(
            partitions=((1, "text"),), vector=vector, codes={ENCODER: encode(vector[None])[0]}, k=1, now_ms=0
        )
    )
    assert (result.matches[0].entry_id, result.matches[0].payload) == (3, b"payload of 3")
    assert result.matches[0].cosine_distance < 1e-6


def test_opened_graphs_serve_searches(root):
    index = open_generation(root, "gen-00000001", config=CONFIG)
    query = unit_vectors(1, seed=4)[0]
    asked = SearchRequest(partitions=((1, "text"),), vector=query, k=3, now_ms=0, path=SearchPath.HNSW)
    assert index.search(asked).path is SearchPath.HNSW


def test_report_counts_what_was_written(tmp_path):
    report = build(tmp_path, sample_batches(), with_graph=True)
    files = [path for path in (tmp_path / report.generation).iterdir() if path.name != "manifest.json"]
    assert (report.row_count, report.segment_count, report.graph_count) == (7, 2, 2)
    assert report.size_bytes == sum(path.stat().st_size for path in files)


def test_build_of_no_rows_serves_an_empty_index(tmp_path):
    report = build(tmp_path, [(KEY, make_rows([]))])
    assert report.segment_count == 0
    assert open_generation(tmp_path, report.generation, config=CONFIG).live_ids().size == 0


def test_small_memory_limit_makes_several_segments_with_the_same_rows(tmp_path):
    batches = [(KEY, make_rows(range(start, start + 10), seed=start)) for start in range(0, 100, 10)]
    batch_bytes = batches[-1][1].size_bytes + 10 * PAYLOAD_OVERHEAD_BYTES
    report = build(tmp_path, batches, memory_limit_bytes=3 * 4 * batch_bytes)
    assert report.segment_count == 2
    index = open_generation(tmp_path, report.generation, config=CONFIG)
    assert index.live_ids().tolist() == list(range(100))


def test_progress_counts_rows(tmp_path):
    seen = []
    build(tmp_path, sample_batches(), progress=lambda stage, done, total: seen.append((stage, done, total)))
    assert seen == [("write", 5, 0), ("write", 7, 0), ("verify", 5, 7), ("verify", 7, 7)]


def test_progress_shows_lists_and_graphs(tmp_path):
    seen = []
    build(
        tmp_path,
        sample_batches(),
        config=config(lists_min_rows=5),
        with_graph=True,
        progress=lambda stage, done, total: seen.append((stage, done, total)),
    )
    assert seen[:3] == [("lists", 5, 5), ("graph", 5, 5), ("write", 5, 0)]


def test_segments_of_many_coded_rows_get_lists(tmp_path):
    batches = [
        (KEY, make_rows(range(60, 0, -1), seed=1)),
        (OTHER, make_rows(range(100, 160), seed=2, with_codes=False)),
    ]
    report = build(tmp_path, batches, config=config(lists_min_rows=60, rows_per_list=9))
    manifest = read_manifest(tmp_path, report.generation)
    listed, other = (read_segment(tmp_path / report.generation / entry.file) for entry in manifest.segments)
    assert (listed.lists.list_count, listed.lists.row_count, other.lists) == (6, 60, None)
    assert sorted(listed.rows.entry_ids.tolist()) == list(range(1, 61))
    assert check_generation(tmp_path, report.generation) == []


def test_rows_with_lists_keep_their_columns(tmp_path):
    rows = make_rows(range(40), seed=1)
    report = build(tmp_path, [(KEY, rows)], config=config(lists_min_rows=10, rows_per_list=8))
    index = open_generation(tmp_path, report.generation, config=CONFIG)
    for asked in (7, 23):
        ((_, found),) = index.rows_of(np.array([asked]))
        assert found.payloads[0] == f"payload of {asked}".encode()
        assert np.array_equal(found.vectors[0], rows.vectors[asked])
        assert np.array_equal(found.codes[0], rows.codes[asked])


def test_fewer_rows_get_no_lists(tmp_path):
    report = build(tmp_path, [(KEY, make_rows(range(59)))], config=config(lists_min_rows=60))
    segment = read_segment(tmp_path / report.generation / "segment-00001.segment")
    assert segment.lists is None
    assert segment.rows.is_ascending


@pytest.mark.parametrize("lists_min_rows", [10, 1_000])
def test_build_of_rows_that_are_not_finite_is_refused(root, lists_min_rows):
    vectors = unit_vectors(60, seed=1).astype(np.float16)
    vectors[31, 3] = np.nan
    batches = [(KEY, make_rows(range(100, 160), vectors=vectors, codes=encode(unit_vectors(60, seed=1))))]
    before = names(root)
    with pytest.raises(InvalidRowsError if lists_min_rows == 10 else DamagedGenerationError):
        build(root, batches, config=config(lists_min_rows=lists_min_rows, rows_per_list=30))
    assert (current_generation(root), names(root)) == ("gen-00000001", before)


def test_id_in_two_batches_is_refused(tmp_path):
    with pytest.raises(InvalidRowsError):
        build(tmp_path, [(KEY, make_rows([1, 2])), (KEY, make_rows([2, 3]))])
    with pytest.raises(DamagedGenerationError, match="in two segments"):
        build(tmp_path, [(KEY, make_rows([1, 2])), (OTHER, make_rows([2, 3], with_codes=False))])
    assert current_generation(tmp_path) is None


def test_interrupted_build_leaves_the_current_generation(root):
    def interrupted():
        yield KEY, make_rows([50])
        raise KeyboardInterrupt

    before = names(root)
    with pytest.raises(KeyboardInterrupt):
        build(root, interrupted(), memory_limit_bytes=1)
    assert names(root) == before
    assert check_generation(root, current_generation(root)) == []


def test_leftovers_of_a_killed_build_are_removed_by_the_next(root):
    (root / "building-00000002").mkdir()
    (root / "building-00000002" / "segment-00001.segment.tmp").write_bytes(b"half")
    build(root, sample_batches())
    assert names(root) == ["CURRENT", "build.lock", "gen-00000001", "gen-00000002"]


def test_two_builds_at_once_are_refused(root):
    with build_lock(root), pytest.raises(BuildInProgressError):
        build(root, sample_batches())


def test_prune_leaves_a_running_build_alone(root):
    (root / "building-00000002").mkdir()
    with build_lock(root):
        prune(root)
    assert "building-00000002" in names(root)
    prune(root)
    assert "building-00000002" not in names(root)


def test_prune_keeps_the_current_and_the_newest(root):
    for _ in range(3):
        build(root, sample_batches())
    activate(root, "gen-00000002")
    assert prune(root, keep=2) == ["gen-00000001", "gen-00000003"]
    assert names(root) == ["CURRENT", "build.lock", "gen-00000002", "gen-00000004"]
    assert prune(root, keep=1) == ["gen-00000004"]
    assert check_generation(root, "gen-00000002") == []


def test_removed_generations_are_gone_and_their_names_are_not_given_again(root):
    build(root, sample_batches())
    (root / "trash-00000002").mkdir()  # of a removal that was interrupted
    (root / "trash-00000002" / "left").write_bytes(b"rows")
    assert remove_generations(root, ["gen-00000001", "gen-00000002", "gen-00000009"]) == [
        "gen-00000001",
        "gen-00000002",
    ]
    assert names(root) == ["CURRENT", "build.lock"]
    assert last_generation_number(root) == 2
    assert build(root, sample_batches()).generation == "gen-00000003"
    (root / "CURRENT").write_bytes(b"nothing")
    assert last_generation_number(root) == 3


def test_build_removes_the_generations_before_the_last(root):
    for _ in range(3):
        build(root, sample_batches(), keep=2)
    assert names(root) == ["CURRENT", "build.lock", "gen-00000003", "gen-00000004"]
    assert current_generation(root) == "gen-00000004"


def test_build_that_fails_removes_nothing(root):
    build(root, sample_batches())
    before = names(root)
    with pytest.raises(InvalidRowsError):
        build(root, [(KEY, make_rows([1])), (KEY, make_rows([1]))], keep=1)
    assert names(root) == before


def test_build_that_would_keep_none_is_refused(root):
    with pytest.raises(ValueError, match="keep"):
        build(root, sample_batches(), keep=0)


def test_served_generation_survives_builds_that_remove_it(root):
    index = open_generation(root, "gen-00000001", config=CONFIG)
    build(root, [(KEY, make_rows([50]))], keep=1)
    assert names(root) == ["CURRENT", "build.lock", "gen-00000002"]
    asked = SearchRequest(partitions=((1, "text"),), vector=unit_vectors(1, seed=4)[0], k=9, now_ms=0)
    found = index.search(asked).matches
    assert {match.payload for match in found} == {f"payload of {i}".encode() for i in (1, 3, 9, 27, 30)}


def test_served_generation_survives_its_removal(root):
    index = open_generation(root, "gen-00000001", config=CONFIG)
    build(root, sample_batches())
    prune(root, keep=1)
    asked = SearchRequest(partitions=((1, "text"),), vector=unit_vectors(1, seed=4)[0], k=9, now_ms=0)
    assert len(index.search(asked).matches) == 5


def test_rollback_activates_an_earlier_generation(root):
    build(root, sample_batches())
    activate(root, "gen-00000001")
    assert current_generation(root) == "gen-00000001"


def test_absent_generation_is_not_activated(root):
    with pytest.raises(DamagedGenerationError):
        activate(root, "gen-00000009")
    assert current_generation(root) == "gen-00000001"


def test_no_generation_before_the_first_build(tmp_path):
    assert current_generation(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"gen-1\n", b"../gen-00000001\n", b"\xff\xfe"])
def test_damaged_current_is_refused(root, content):
    (root / "CURRENT").write_bytes(content)
    with pytest.raises(DamagedGenerationError, match="CURRENT"):
        current_generation(root)


def test_flip_of_any_byte_of_the_manifest_is_refused_or_without_effect(root):
    path = root / "gen-00000001" / "manifest.json"
    content, manifest = path.read_bytes(), read_manifest(root, "gen-00000001")
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 2
        path.write_bytes(damaged)
        try:
            assert read_manifest(root, "gen-00000001") == manifest
        except DamagedGenerationError as error:
            assert error.path == path


@pytest.mark.parametrize("version", [1, 2])
def test_manifest_of_a_known_version_is_read(root, version):
    manifest = read_manifest(root, "gen-00000001")
    set_version(root / "gen-00000001" / "manifest.json", version)
    assert read_manifest(root, "gen-00000001") == manifest


def test_manifest_of_an_unknown_version_is_refused(root):
    set_version(root / "gen-00000001" / "manifest.json", 3)
    with pytest.raises(DamagedGenerationError, match="format version 3"):
        read_manifest(root, "gen-00000001")


def test_programs_that_know_no_texts_in_payloads_refuse_what_is_built(root):
    body = json.loads((root / "gen-00000001" / "manifest.json").read_bytes())
    assert body["format_version"] > 1  # all that they read; a text would be part of the entry's id to them


def set_version(path, version):
    """Give a manifest another format version, with the checksum that it then has."""
    body = json.loads(path.read_bytes()) | {"format_version": version}
    del body["crc32"]
    checksum = zlib.crc32(json.dumps(body, sort_keys=True).encode())
    path.write_text(json.dumps(body | {"crc32": checksum}))


def test_truncated_manifest_is_refused(root):
    path = root / "gen-00000001" / "manifest.json"
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedGenerationError):
            read_manifest(root, "gen-00000001")


def test_manifest_of_another_generation_is_refused(root):
    (root / "gen-00000001").rename(root / "gen-00000007")
    with pytest.raises(DamagedGenerationError, match="gen-00000001"):
        open_generation(root, "gen-00000007", config=CONFIG)


def test_generation_of_another_cache_is_refused(root):
    with pytest.raises(DamagedGenerationError, match="of cache 'shop', not 'bank'"):
        open_generation(root, "gen-00000001", config=CONFIG, cache="bank")


def test_segment_of_another_cache_is_refused(root):
    path = root / "gen-00000001" / "segment-00001.segment"
    write_segment(path, cache="bank", key=KEY, rows=make_rows([1, 3, 9, 27, 30]))
    with pytest.raises(DamagedGenerationError, match="of cache 'bank'"):
        open_generation(root, "gen-00000001", config=CONFIG)


def test_other_segment_of_the_same_cache_is_refused(root):
    path = root / "gen-00000001" / "segment-00001.segment"
    write_segment(path, cache="shop", key=KEY, rows=make_rows([1, 3, 9, 27, 30]))
    with pytest.raises(DamagedGenerationError, match="not the segment that the manifest lists"):
        open_generation(root, "gen-00000001", config=CONFIG)


def test_flip_in_a_graph_is_refused_by_name(root):
    path = root / "gen-00000001" / "segment-00002.hnsw"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedGraphError, match="segment-00002"):
        open_generation(root, "gen-00000001", config=CONFIG)


@pytest.mark.parametrize("file", ["segment-00001.segment", "segment-00001.hnsw", "manifest.json"])
def test_missing_file_is_refused_and_named_by_check(root, file):
    (root / "gen-00000001" / file).unlink()
    with pytest.raises(DamagedFileError, match=file):
        open_generation(root, "gen-00000001", config=CONFIG)
    (problem,) = check_generation(root, "gen-00000001")
    assert file in problem


@pytest.mark.parametrize("changes", [{"code_bits": 128}, {"label_bits": 0}])
def test_other_code_or_label_bits_are_refused(root, changes):
    config = IndexConfig(**({"code_bits": CODE_BITS, "label_bits": LABEL_BITS} | changes))
    with pytest.raises(DimensionError, match=next(iter(changes))):
        open_generation(root, "gen-00000001", config=config)


def fields_of(value):
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


@pytest.mark.parametrize("file", ["../gen-00000002/segment-00001.segment", "/absolute", "..", ""])
def test_manifest_that_leaves_its_directory_is_refused(root, file):
    manifest = read_manifest(root, "gen-00000001")
    entry = type(manifest.segments[0])(**(fields_of(manifest.segments[0]) | {"file": file}))
    changed = type(manifest)(**(fields_of(manifest) | {"segments": (entry,)}))
    write_manifest(root / "gen-00000001", changed)
    with pytest.raises(DamagedGenerationError, match="outside its directory"):
        read_manifest(root, "gen-00000001")


def rewrite(root, *, rows, key=KEY):
    """Replace the first segment and its manifest entry by other rows, checksums right."""
    directory = root / "gen-00000001"
    size_bytes, checksum = write_segment(
        directory / "segment-00001.segment", cache="shop", key=key, rows=rows
    )
    manifest = read_manifest(root, "gen-00000001")
    changes = {"size_bytes": size_bytes, "crc32": checksum, "row_count": len(rows), "graph": None}
    entry = type(manifest.segments[0])(**(fields_of(manifest.segments[0]) | changes))
    segments = (entry, *manifest.segments[1:])
    write_manifest(directory, type(manifest)(**(fields_of(manifest) | {"segments": segments})))


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (make_rows([1, 4]), "1 entry ids in two segments, the first is 4"),
        (make_rows([1], codes=np.array([[0, 1 << 6]], dtype=np.uint64)), "codes have bits set beyond bit 70"),
        (make_rows([1], codes=np.zeros((1, 3), dtype=np.uint64)), "codes of 3 words"),
        (make_rows([1], label_codes=np.zeros((1, 0), dtype=np.uint64)), "label codes of 0 words"),
        (
            make_rows([1, 2], vectors=make_rows([1, 2]).vectors * np.float16(1.01)),
            "vector of entry 1 has norm 1.01",
        ),
        (
            make_rows([1], vectors=np.full((1, 12), np.nan, np.float16), codes=encode(np.ones((1, 12)))),
            "norm nan",
        ),
        (make_rows([-1]), "entry id -1 is negative"),
        (
            make_rows(
                [1], vectors=unit_vectors(1, seed=0, dim=5).astype(np.float16), codes=encode(np.ones((1, 12)))
            ),
            "of 12",
        ),
    ],
)
def test_check_names_what_is_broken_under_right_checksums(root, rows, problem):
    rewrite(root, rows=rows)
    problems = check_generation(root, "gen-00000001")
    assert len(problems) == 1
    assert problem in problems[0]


def test_check_finds_nothing_wrong_with_a_build(root):
    assert check_generation(root, "gen-00000001") == []


def test_check_names_a_damaged_segment(root):
    path = root / "gen-00000001" / "segment-00002.segment"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (problem,) = check_generation(root, "gen-00000001")
    assert "segment-00002" in problem
    assert "payload_bytes" in problem
