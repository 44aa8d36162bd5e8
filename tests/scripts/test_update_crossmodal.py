"""An encoder of two modalities that learns new labels and forgets rows, from the command line."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from nearhit import Client
from nearhit.client import store_request
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1.admin_service_pb2 import CreateCacheRequest
from numpy.typing import NDArray

from hashing.crossmodal_config import CrossModalConfig, KernelSettings
from scripts.server_process import ServerProcess
from service.config import load_config
from service.crossmodal_learning import train_crossmodal_from_store
from service.database import open_engine, writing
from service.registry import activate_encoder

Run = Callable[..., Any]

DIMS = {"image": 12, "text": 8}
CODES = "SELECT name, code, vector FROM entries WHERE code IS NOT NULL"
SMALL = CrossModalConfig(
    code_bits=64,
    itq_iterations=2,
    label_feature_count=64,
    function_feature_count=64,
    kernels=dict.fromkeys(DIMS, KernelSettings(gamma=1.0, ridge=1e-3)),
)
CENTRES = {modality: np.random.default_rng(dim).standard_normal((5, dim)) for modality, dim in DIMS.items()}


def rows_of(modality: str, label: int, count: int, *, seed: int) -> NDArray[np.float64]:
    noise = np.random.default_rng([seed, label, DIMS[modality]]).standard_normal((count, DIMS[modality]))
    return CENTRES[modality][label] + 0.3 * noise


def store(client: Client, modality: str, label: int, count: int, *, seed: int = 0) -> None:
    """Entries such as image-c1-0."""
    requests = [
        store_request(
            "shop",
            "all",
            entry=f"{modality}-c{label}-{i}",
            embedding=row,
            modality=modality,
            response=f"secret {modality} {label} {i}.".encode(),
            labels=[f"c{label}"],
        )
        for i, row in enumerate(rows_of(modality, label, count, seed=seed))
    ]
    client.batch_store("shop", requests)


def fill(client: Client) -> None:
    """The cache "shop", with 40 rows of c0, c1 and c2 in either modality."""
    modalities = [pb.Modality(modality=name, dim=dim) for name, dim in DIMS.items()]
    cache = pb.Cache(modalities=modalities, code_bits=64, label_bits=64)
    client.call(client.admin.CreateCache, CreateCacheRequest(cache_id="shop", cache=cache))
    client.create_category("shop", "all")
    for modality in DIMS:
        for label in range(3):
            store(client, modality, label, 40)


def asked(folder: Path, query: str) -> list[Any]:
    """What the database of a test answers."""
    connection = sqlite3.connect(folder / "nearhit.db")
    found = connection.execute(query).fetchall()
    connection.close()
    return found


def test_both_modalities_learn_new_labels_and_forget_rows(
    nearhit: Run, answer: Callable[..., dict[str, Any]], config_path: Path, tmp_path: Path
) -> None:
    nearhit("migrate")
    address = load_config(config_path).server.address
    with ServerProcess(config_path, address=address) as server:
        client = server.client
        fill(client)
        nearhit("train", "--cache", "shop", "--crossmodal", "--activate")
        nearhit("build", "--cache", "shop")
        before = set(asked(tmp_path, CODES))
        for modality in DIMS:
            store(client, modality, 3, 30)
        store(client, "text", 4, 30)

        updated = answer(nearhit("update", "--cache", "shop", "--json"))
        assert (updated["accepted"], updated["new_labels"]) == (True, ["c3", "c4"])
        assert updated["stored_bits_changed"] == 0
        assert updated["old_map_after"] > 0.95 and updated["other_figures"]["text.old_map_after"] > 0.95
        assert before < set(asked(tmp_path, CODES))

        def found(modality: str, target: str) -> set[str]:
            asked = {"embedding": rows_of(modality, 3, 1, seed=9)[0], "modality": modality, "by_label": True}
            done = client.search("shop", **asked, target_modality=target, top_k=30)
            return {result.entry.name.rpartition("/")[2] for result in done.results}

        for modality in DIMS:
            for target in DIMS:
                assert found(modality, target) == {f"{target}-c3-{i}" for i in range(30)}

    gone = [f"text-c{label}-{i}" for label in range(4) for i in range(3)] + ["image-c3-1", "image-c3-2"]
    report = answer(nearhit("forget", "--cache", "shop", "--prove", "--json", "--entry", *gone))
    assert (report["outcome"], report["entries_deleted"], report["problems"]) == ("forgotten", 14, [])
    assert sorted(own["modality"] for own in report["proofs"]) == ["image", "text"]
    assert all(own["max_difference"] < 1e-3 for own in report["proofs"])
    assert (report["query_bits_changed"], report["code_bits_changed"]) == (0, 0)
    nearhit("check", "--cache", "shop")
    content = b"".join(path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file())
    assert b"secret text 3 1." not in content and b"secret text 3 7." in content


def test_a_killed_update_has_learned_nothing_or_all(
    nearhit: Run, answer: Callable[..., dict[str, Any]], config_path: Path, tmp_path: Path
) -> None:
    """The process kills itself in the transaction of its end, then, the next time, after it."""
    nearhit("migrate")
    config = load_config(config_path)
    with ServerProcess(config_path, address=config.server.address) as server:
        fill(server.client)
        engine = open_engine(config.store)
        trained = train_crossmodal_from_store(engine, "shop", config=SMALL, progress=None, now_ms=1)
        with writing(engine) as connection:
            activate_encoder(connection, 1, trained.encoder_id, max_live_encoders=4)
        engine.dispose()
        for modality in DIMS:
            store(server.client, modality, 3, 20)

    def active() -> tuple[str, int]:
        return asked(tmp_path, "SELECT encoder_id, class_count FROM encoders WHERE state = 'active'")[0]

    def learned() -> dict[str, int]:
        return dict(asked(tmp_path, "SELECT modality, count(*) FROM learned_rows GROUP BY modality"))

    before = learned()
    assert kill_update(config_path, "service.update.issue_label_codes") == -9
    assert (active(), learned()) == ((trained.encoder_id, 3), before)
    assert kill_update(config_path, "scripts.update_encoder.asdict") == -9
    assert active()[1] == 4 and active()[0] != trained.encoder_id
    assert all(learned()[modality] > before[modality] for modality in DIMS)
    nearhit("update", "--cache", "shop", status=3)
    nearhit("check", "--cache", "shop")
    report = answer(nearhit("forget", "--cache", "shop", "--prove", "--json", "--label", "c3"))
    assert (report["problems"], len(report["proofs"]), report["learned_rows_removed"] > 0) == ([], 2, True)
    assert learned() == before


def kill_update(config_path: Path, place: str) -> int:
    """Run an update that dies when it comes to a place; its exit status."""
    module, name = place.rsplit(".", 1)
    program = (
        "import os, signal, sys\n"
        f"import {module} as module\n"
        f"module.{name} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from scripts.__main__ import main\n"
        "main(sys.argv[1:])\n"
    )
    command = ["update", "--config", str(config_path), "--cache", "shop"]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'protos'}"}
    process = [sys.executable, "-c", program, *command]
    return subprocess.run(process, cwd=root, env=environment, check=False, timeout=100).returncode
