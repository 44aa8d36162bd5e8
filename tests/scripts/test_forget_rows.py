"""`nearhit forget`: what it prints, how it ends, and that it finishes what was interrupted."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hashing.config import EncoderConfig
from scripts.__main__ import main
from service.config import load_config
from service.database import open_engine, writing
from service.learning import train_from_store
from service.registry import activate_encoder

Forget = Callable[..., Any]


@pytest.fixture
def filled(config_path: Path, tmp_path: Path, embeddings: NDArray[np.float32]) -> str:
    """Cache "faq" with labelled rows q0 to q119, an active encoder of them and a generation; its encoder."""
    with (tmp_path / "rows.jsonl").open("w") as file:
        for number, embedding in enumerate(embeddings):
            row = {
                "id": f"q{number}",
                "embedding": embedding.tolist(),
                "response": f"confidential answer {number}.",
                "labels": [f"cluster{number % 4}"],
                "source": f"person {number % 10}",
            }
            file.write(json.dumps(row) + "\n")
    command = ("build", "--config", str(config_path), "--cache", "faq", "--code-bits", "64", "--json")
    assert main([*command, "--input", str(tmp_path / "rows.jsonl")]) == 0
    engine = open_engine(load_config(config_path, environment={}).store)
    small = EncoderConfig(code_bits=64, label_bits=64, itq_iterations=2, feature_count=64)
    trained = train_from_store(engine, "faq", config=small, modality="text", progress=None, now_ms=1)
    with writing(engine) as connection:
        activate_encoder(connection, 1, trained.encoder_id, max_live_encoders=4)
    engine.dispose()
    assert main([*command]) == 0
    (tmp_path / "rows.jsonl").unlink()
    return trained.encoder_id


@pytest.fixture
def forget(config_path: Path, capsys: pytest.CaptureFixture[str]) -> Forget:
    """Runs the command in this process, and reads the JSON that it prints."""

    def run(*arguments: str, status: int = 0) -> Any:
        capsys.readouterr()
        given = ["forget", "--config", str(config_path), "--cache", "faq", "--json", *arguments]
        assert main(given) == status
        printed = capsys.readouterr().out
        return json.loads(printed) if printed else None

    return run


def test_the_report_says_what_is_gone_and_proves_the_rest(
    filled: str, forget: Forget, tmp_path: Path
) -> None:
    promised = forget("--source", "person 3", "--dry-run")
    assert (promised["outcome"], promised["entries_deleted"]) == ("dry run: nothing was changed", 12)
    report = forget("--source", "person 3", "--prove")
    assert report["outcome"] == "forgotten"
    assert report["selection"] == {"sources": ["person 3"]}
    for name in ("entries_deleted", "learned_rows_removed", "encoders_destroyed"):
        assert report[name] == promised[name]
    assert report["learned_rows_removed"] > 0
    assert report["encoders_renewed"] == {filled: report["active_encoder"]}
    assert report["label_part_difference"] <= report["label_part_tolerance"] == 1e-3
    assert (report["query_bits_changed"], report["code_bits_changed"], report["problems"]) == (0, 0, [])
    assert len(report["generations_removed"]) == 2
    content = b"".join(path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file())
    assert b"confidential answer 13." not in content
    assert b"confidential answer 14." in content
    assert main(["check", "--config", str(tmp_path / "nearhit.toml")]) == 0


def test_a_person_can_read_the_report(
    filled: str, config_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    command = ["forget", "--config", str(config_path), "--cache", "faq"]
    assert main([*command, "--entry", "q4", "q5", "--entry", "q6", "--no-rewrite"]) == 0
    printed = capsys.readouterr().out
    lines = dict(line.split(maxsplit=1) for line in printed.splitlines())
    assert (lines["selection"], lines["entries_deleted"]) == ("names: q4; q5; q6", "3")
    assert lines["encoders_destroyed"] == filled
    assert "note: the database file was not rewritten" in printed


def test_nothing_selected_is_said(filled: str, forget: Forget) -> None:
    for selection in (("--entry", "none"), ("--label", "none"), ("--tag", "none"), ("--source", "none")):
        report = forget(*selection, "--no-rewrite", status=3)
        assert (report["outcome"], report["encoders_destroyed"]) == ("nothing is selected", [])
        assert report["active_encoder"] == filled
    assert forget("--entry", "none", "--dry-run", status=3)["outcome"] == "nothing is selected"


def test_everything_may_be_forgotten(filled: str, forget: Forget, tmp_path: Path) -> None:
    labels = [f"cluster{number}" for number in range(4)]
    report = forget("--label", *labels, "--prove")
    assert (report["entries_deleted"], report["problems"]) == (120, [])
    content = b"".join(path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file())
    assert b"confidential" not in content


def test_problems_have_a_status_of_their_own(
    filled: str, forget: Forget, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = ("the log was not emptied",)
    monkeypatch.setattr("service.forget_report.erase_free_space", lambda *_, **__: problem)
    report = forget("--entry", "q1", status=4)
    assert (report["outcome"], report["problems"]) == ("forgotten, but see problems", [*problem])


def test_an_unknown_cache_is_refused(filled: str, config_path: Path) -> None:
    assert main(["forget", "--config", str(config_path), "--cache", "none", "--entry", "q1"]) == 1


@pytest.mark.parametrize("arguments", [(), ("--entry", "q1", "--tag", "t"), ("--entry",)])
def test_one_kind_of_selection_is_needed(config_path: Path, arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["forget", "--config", str(config_path), "--cache", "faq", *arguments])
    assert raised.value.code == 2


@pytest.mark.parametrize("stage", ["forget_rows", "erase_generations", "erase_free_space"])
def test_a_killed_command_is_finished_by_the_next(
    filled: str, forget: Forget, config_path: Path, tmp_path: Path, stage: str
) -> None:
    """The process kills itself right after a stage."""
    program = (
        "import os, signal, sys\n"
        "from service import forget_report\n"
        f"stage = forget_report.{stage}\n"
        "def die(*arguments, **named):\n"
        "    stage(*arguments, **named)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"forget_report.{stage} = die\n"
        "from scripts.__main__ import main\n"
        "main(sys.argv[1:])\n"
    )

    root = Path(__file__).parents[2]
    command = ["forget", "--config", str(config_path), "--cache", "faq", "--entry", "q13"]
    done = subprocess.run(
        [sys.executable, "-c", program, *command],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'protos'}"},
        check=False,
        timeout=60,
    )
    assert done.returncode == -9
    forget("--entry", "q13", status=3)
    content = b"".join(path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file())
    assert b"confidential answer 13." not in content
    assert b"confidential answer 14." in content
    assert main(["check", "--config", str(config_path)]) == 0
