"""The replay of a log: what a policy would have done, against a brute-force replay and by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from numpy.typing import NDArray

from scripts.__main__ import main
from scripts.request_log import RequestLog, read_log
from scripts.simulate import replay, to_policy
from scripts.simulated_cache import Outcome, Request, SimulatedCache
from service.break_even import PROBED, WINDOW
from service.config import EmbedderConfig
from service.lookup import LookupReason
from service.policy import Policy, resolve

INTENTS = Path(__file__).parents[3] / "shared" / "data" / "intents.npz"
DIM = 8


def policy(*assignments: str) -> Policy:
    """The policy that FIELD=VALUE make."""
    return resolve([to_policy(assignments)])


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rows of norm 1."""
    found: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
    return found


def topics(count: int, *, seed: int = 0, alone_share: float = 0.2) -> tuple[NDArray[np.float32], list[bytes]]:
    """Requests of a few topics, each of which has one answer; some lie between two and have their own."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.standard_normal((10, DIM)))
    vectors, answers = [], []
    for i in range(count):
        topic, other = rng.integers(10, size=2)
        if rng.random() < alone_share:
            vectors.append(centres[topic] + centres[other] + 0.1 * rng.standard_normal(DIM))
            answers.append(b"only %d" % i)
        else:
            vectors.append(centres[topic] + 0.15 * rng.standard_normal(DIM))
            answers.append(b"topic %d" % topic)
    return unit(np.array(vectors)), answers


def log_of(vectors: NDArray[np.float32], answers: list[bytes], **changed: Any) -> RequestLog:
    """A request a second, in two categories."""
    count = len(vectors)
    columns: dict[str, Any] = {
        "times_ms": 1 + 1000 * np.arange(count),
        "embeddings": vectors,
        "categories": ["even" if i % 2 == 0 else "odd" for i in range(count)],
        "responses": answers,
        "scopes": [""] * count,
        "texts": [""] * count,
        "costs": np.ones(count),
        "loads": np.zeros(count),
    }
    return RequestLog(**{**columns, **changed})


@pytest.mark.parametrize("threshold", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("ttl_seconds", [None, 50])
def test_a_replay_is_what_brute_force_finds(threshold: float, ttl_seconds: int | None) -> None:
    vectors, answers = topics(400)
    log = log_of(vectors, answers)
    ttl = [] if ttl_seconds is None else [f"ttl={ttl_seconds}"]
    tallies = replay(log, policy(f"threshold={threshold}", *ttl))
    hits = wrong = 0
    stored: dict[str, list[tuple[int, NDArray[np.float32], bytes]]] = {"even": [], "odd": []}
    for i, (vector, answer) in enumerate(zip(vectors, answers, strict=True)):
        own = stored[log.categories[i]]
        live = [(row, told) for at, row, told in own if ttl_seconds is None or i < at + ttl_seconds]
        distances = [1 - float(row @ vector) for row, _ in live]
        if distances and min(distances) <= threshold:
            hits += 1
            wrong += live[int(np.argmin(distances))][1] != answer
        else:
            own.append((i, vector.astype(np.float16).astype(np.float32), answer))
    total = tallies["all requests"]
    assert (total.requests, total.hits, total.wrong, total.shed) == (400, hits, wrong, hits)
    assert total.hits == tallies["even"].hits + tallies["odd"].hits
    assert total.cost_saved == hits


# One request at a time


def cache_of(*assignments: str) -> SimulatedCache:
    """A cache of one category."""
    return SimulatedCache({"a": policy(*assignments)}, dim=DIM)


def ask(cache: SimulatedCache, row: int, *, seconds: float, answer: bytes = b"x", **told: Any) -> Outcome:
    """Ask for one of DIM directions that are far from each other."""
    vector = np.eye(DIM, dtype=np.float32)[row]
    return cache.ask(
        Request(time_ms=int(1000 * seconds) + 1, category="a", vector=vector, response=answer, **told)
    )


def test_an_entry_expires_and_is_refreshed_as_the_policy_says() -> None:
    cache = cache_of("ttl=100", "refresh_after=10")
    assert ask(cache, 0, seconds=0).reason is LookupReason.NO_CANDIDATE
    assert ask(cache, 0, seconds=9).response == b"x"
    assert ask(cache, 0, seconds=10, answer=b"y").reason is LookupReason.STALE
    assert ask(cache, 0, seconds=19).response == b"y"  # in the place of the other
    assert len(cache.state.index.segment_views()) and ask(cache, 0, seconds=111).response is None


def test_what_is_served_past_its_refresh_time_is_computed_once() -> None:
    cache = cache_of("refresh_after=10", "stale_while_revalidate=true")
    ask(cache, 0, seconds=0)
    served = ask(cache, 0, seconds=10, answer=b"y")
    assert (served.response, served.is_computed) == (b"x", True)
    again = ask(cache, 0, seconds=11)
    assert (again.response, again.is_computed) == (b"y", False)


def test_a_sliding_entry_lives_longer() -> None:
    cache = cache_of("ttl=10", "ttl_mode=sliding")
    ask(cache, 0, seconds=0)
    assert all(ask(cache, 0, seconds=second).response for second in (9, 18, 27))
    assert ask(cache, 0, seconds=37).response is None


@pytest.mark.parametrize(
    ("eviction", "left"), [("lru", 1), ("lfu", 2), ("fifo", 0), ("cost", 0)], ids=lambda value: str(value)
)
def test_entries_leave_in_the_order_of_the_policy(eviction: str, left: int) -> None:
    cache = cache_of("max_entries=3", f"eviction={eviction}")
    # 0 is old, cheap and often used; 1 was used longest ago; 2 was used once, lately.
    for row, cost in ((0, 0.01), (1, 5.0), (2, 5.0)):
        ask(cache, row, seconds=row, cost=cost)
    for row, second in ((1, 3), (1, 4), (0, 5), (0, 6), (2, 7)):
        assert ask(cache, row, seconds=second).response
    ask(cache, 3, seconds=8, cost=5.0)
    kept = [row for row in range(4) if ask(cache, row, seconds=9).response]
    gone = [row for row in range(3) if row not in kept]
    assert gone[0] == left


def test_quotas_of_bytes_and_admission_are_kept() -> None:
    size = 1 + 2 * DIM + 32
    cache = cache_of(f"max_bytes={2 * size}", "min_cost=1")
    assert ask(cache, 0, seconds=0, cost=0.5).response is None
    assert ask(cache, 0, seconds=1, cost=0.5).response is None  # too cheap to be stored
    for row in range(3):
        ask(cache, row, seconds=2 + row, cost=1.0)
    assert ask(cache, 1, seconds=6, cost=1.0).response and ask(cache, 2, seconds=6, cost=1.0).response
    assert ask(cache, 4, seconds=7, cost=1.0, answer=b"x" * 2 * size).response is None
    assert ask(cache, 1, seconds=8, cost=1.0).response  # it would not have fitted, and nothing left for it
    second = cache_of("second_sighting=true")
    assert [ask(second, 0, seconds=s).response for s in range(3)] == [None, None, b"x"]


def test_scopes_are_apart_and_equal_texts_need_no_search() -> None:
    cache = cache_of("threshold=0")
    ask(cache, 0, seconds=0, scope="s", text="why")
    assert ask(cache, 0, seconds=1, scope="t").response is None
    assert ask(cache, 5, seconds=2, scope="s", text="why").reason is LookupReason.FINGERPRINT
    assert ask(cache, 5, seconds=3, scope="t", text="why").response is None


# Load, targets, break-even


def test_load_relaxes_the_threshold_of_requests_at_load_alone() -> None:
    vectors, answers = topics(600)
    log = log_of(vectors, answers, loads=np.arange(600) % 4 / 3)
    asked = ("threshold=0.02", "max_threshold_at_load=0.3")
    still, moved = (replay(log, policy(*asked, *more)) for more in ((), ("load_model=m",)))
    before, after = still["all requests"].figures(), moved["all requests"].figures()
    assert still["all requests"].busy == 300
    assert after["load_shed_at_load"] > before["load_shed_at_load"] + 0.2
    assert replay(log, policy("threshold=0.02"))["all requests"] == still["all requests"]


def test_a_target_is_learned_from_what_is_computed_and_kept_also_under_load() -> None:
    vectors, answers = topics(2400, alone_share=0.1, seed=1)
    names = ["a"] * 2400
    idle = log_of(vectors, answers, categories=names)
    busy = log_of(vectors, answers, categories=names, loads=np.ones(2400))
    asked = ("max_wrong=0.02", "max_wrong_at_load=0.1", "load_model=m")
    cold = replay(idle, policy(*asked))["a"]
    learned = replay(idle, policy(*asked, "compare_responses=true"))["a"]
    loaded = replay(busy, policy(*asked, "compare_responses=true"))["a"]
    assert cold.hits < learned.hits < loaded.hits
    assert learned.wrong <= 0.02 * learned.hits
    assert loaded.wrong <= 0.1 * loaded.hits


def test_bypass_acts_where_it_is_asked_for_and_is_told_where_it_is_not() -> None:
    rows = np.random.default_rng(0).standard_normal((WINDOW + 10 * PROBED, 32))
    vectors, answers = unit(rows), [b"%d" % i for i in range(len(rows))]
    log = log_of(vectors, answers, categories=["a"] * len(rows), costs=np.full(len(rows), 4.0))
    costs = ("threshold=0.01", "lookup_cost=1")
    told = replay(log, policy(*costs))["a"].figures()
    assert (told["break_even_hit_rate"], told["bypassed"], told["bypass"]) == (
        0.25,
        10 * (PROBED - 1),
        "would act",
    )
    assert told["cost_saved"] == -len(rows)
    acted = replay(log, policy(*costs, "model_cost=4", "auto_bypass=true"))["a"].figures()
    assert (acted["break_even_hit_rate"], acted["bypassed"], acted["bypass"]) == (
        0.25,
        10 * (PROBED - 1),
        "acted",
    )
    assert acted["cost_saved"] == -(WINDOW + 10)
    pays = replay(log, policy("threshold=0.01", "lookup_cost=0"))["a"].figures()
    assert (pays["break_even_hit_rate"], pays["bypass"]) == (0.0, "none")


# The command


def written(folder: Path) -> Path:
    """A log of three requests, of which the last two are near each other and only those alike in answer."""
    near = [1.0, 0.0, 0.1]
    rows = [
        {"time": 0, "category": "a", "embedding": [0.0, 1, 0], "response": "n", "cost": 2},
        {"time": 1, "category": "b", "embedding": [1.0, 0, 0], "response": "y", "cost": 2},
        {"time": 2, "category": "b", "embedding": near, "response": "y", "cost": 2, "load": 1},
    ]
    path = folder / "requests.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_the_command_prints_totals_and_categories(nearhit: Run, tmp_path: Path) -> None:
    path = str(written(tmp_path))
    done = nearhit("simulate", "--log", path, "--policy", "threshold=0.05", "lookup_cost=0.25")
    head, total, first, second = done.stdout.splitlines()
    assert head.split()[:2] == ["requests", "hits"]
    assert total.startswith("all requests")
    assert total.split()[2:4] == ["3", "33.3%"]
    assert (first.split()[:3], second.split()[:3]) == (["a", "1", "0.0%"], ["b", "2", "50.0%"])
    done = nearhit("simulate", "--log", path, "--policy", "threshold=0.05", "lookup_cost=0.25", "--json")
    told = json.loads(done.stdout)
    assert told["policy"] == {"threshold": 0.05, "lookup_cost": 0.25}
    assert told["all"]["hits"] == told["categories"]["b"]["hits"] == 1
    assert (told["all"]["load_shed_at_load"], told["all"]["cost"], told["all"]["cost_saved"]) == (
        1.0,
        6,
        1.25,
    )
    assert told["categories"]["a"]["wrong_of_hits"] is None
    assert told["categories"]["b"]["break_even_hit_rate"] == 0.125


def test_values_of_a_field_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["simulate", "--log", str(written(tmp_path)), "--compare", "threshold=0.001,0.05"]
    assert main(asked) == 0
    _, strict, lax = capsys.readouterr().out.splitlines()
    assert (strict.split()[:3], lax.split()[:3]) == (
        ["threshold=0.001", "3", "0.0%"],
        ["threshold=0.05", "3", "33.3%"],
    )
    assert main([*asked, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["policy"]["threshold"], row["all"]["hits"]) for row in rows] == [(0.001, 0), (0.05, 1)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "threshold"], "--policy threshold: give FIELD=VALUE"),
        (["--policy", "colour=red"], "'colour' is no field of a policy"),
        (["--policy", "threshold=9"], "threshold must be a cosine distance"),
        (["--policy", "ttl=5", "refresh_after=9"], "more than the ttl"),
        (["--policy", "parent=root"], "categories of a log have none"),
        (["--policy", "shadow=true"], "serves nothing"),
        (["--policy", "min_probability=0.5"], "needs a verifier"),
        (["--policy", "hit_cost=3"], "no less than the mean cost in category a, 2"),
        (["--compare", "threshold"], "give FIELD=VALUE,VALUE"),
        (["--compare", "threshold=0.1,"], "give FIELD=VALUE,VALUE"),
        (["--policy", "threshold=0.1", "--compare", "threshold=0.1,0.2"], "threshold is named twice"),
    ],
)
def test_what_cannot_be_simulated_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["simulate", "--log", str(written(tmp_path)), *arguments]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.skipif(not INTENTS.exists(), reason="development data (intents.npz) is not beside the project")
def test_a_promise_is_kept_on_real_questions(tmp_path: Path) -> None:
    with np.load(INTENTS, allow_pickle=False) as archive:
        rows = np.random.default_rng(0).permutation(len(archive["embeddings"]))[:2000]
        path = tmp_path / "intents.npz"
        np.savez(path, embeddings=archive["embeddings"][rows], responses=archive["intent"][rows])
    log = read_log(path, embedder=EmbedderConfig())
    promised = replay(log, policy("max_wrong=0.05", "compare_responses=true"))["all"].figures()
    fixed = replay(log, policy("threshold=0.1"))["all"].figures()
    assert promised["wrong_of_hits"] <= 0.05
    assert promised["hit_rate"] > fixed["hit_rate"] > 0.05
