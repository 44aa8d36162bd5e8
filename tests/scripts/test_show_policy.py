"""The command that shows and changes what holds for a category."""

import json
from datetime import timedelta

import pytest
from nearhit.v1 import resources_pb2 as pb

from scripts.__main__ import main
from scripts.arguments import CommandError
from scripts.server_process import ServerProcess
from scripts.show_policy import to_message

Output = pytest.CaptureFixture[str]
Served = tuple[ServerProcess, str]


def test_assignments_become_a_message_and_its_mask() -> None:
    message, mask = to_message(
        [
            *("threshold=0.2", "ttl=1.5", "max_entries=7", "shadow=True", "eviction=fifo"),
            *("refresh_after=1", "on_wrong=demote", "parent=root", "min_cost=0.5"),
        ],
        ["max_bytes"],
        cache="faq",
    )
    expected = pb.Category(
        threshold=0.2,
        max_entries=7,
        shadow=True,
        eviction=pb.EVICTION_FIFO,
        on_wrong=pb.WRONG_ACTION_DEMOTE,
        parent="caches/faq/categories/root",
        min_cost=0.5,
    )
    expected.ttl.FromTimedelta(timedelta(seconds=1.5))
    expected.refresh_after.FromTimedelta(timedelta(seconds=1))
    assert message == expected
    assert set(mask.paths) == {field.name for field, _ in message.ListFields()} | {"max_bytes"}


@pytest.mark.parametrize(
    ("assignments", "unset", "words"),
    [
        (["threshold"], [], "give FIELD=VALUE"),
        (["colour=red"], [], "'colour' is no field of a policy; threshold,"),
        (["entry_count=3"], [], "no field of a policy"),
        (["threshold=near"], [], "'near' is no value of threshold"),
        (["max_entries=1.5"], [], "'1.5' is no value of max_entries"),
        (["max_entries=99999999999999999999"], [], "no value of max_entries"),
        (["shadow=maybe"], [], "no value of shadow"),
        (["eviction=best"], [], "no value of eviction: lru, lfu, fifo, cost"),
        (["ttl=1e30"], [], "no value of ttl"),
        (["ttl=nan"], [], "no value of ttl"),
        (["threshold=0.1"], ["threshold"], "threshold is named twice"),
    ],
)
def test_what_cannot_be_understood_is_named(assignments: list[str], unset: list[str], words: str) -> None:
    with pytest.raises(CommandError, match=words):
        to_message(assignments, unset, cache="faq")


def test_a_policy_is_shown_with_where_it_comes_from_and_changed(served: Served, capsys: Output) -> None:
    server, address = served
    server.client.create_cache("faq", dim=8)
    server.client.create_category("faq", "root", threshold=0.05, max_entries=9)
    server.client.create_category("faq", "leaf", parent="root", shadow=True)
    own = ("policy", "faq", "leaf", "--address", address)
    assert main([*own]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "leaf < root  (etag 1)"
    shown = {line.split()[0]: line.split()[1:] for line in lines}
    assert shown["threshold"] == ["0.05", "root"]
    assert shown["shadow"] == ["true", "own"]
    assert shown["ttl"] == ["-", "default"]
    assert shown["eviction"] == ["lru", "default"]
    assert main([*own, "--set", "ttl=60", "--set", "threshold=0.2", "--unset", "shadow", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["etag"], told["parent"]) == ("2", "root")
    assert told["policy"]["ttl"] == {"value": 60.0, "from": "own"}
    assert told["policy"]["threshold"] == {"value": 0.2, "from": "own"}
    assert told["policy"]["shadow"] == {"value": False, "from": "default"}
    assert told["policy"]["max_entries"] == {"value": 9, "from": "root"}
    assert main([*own, "--history", "--json"]) == 0
    changes = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["operation"], row["etag"]) for row in changes] == [("update", "2"), ("create", "1")]
    assert json.loads(changes[0]["before"]) == {"parent": "root", "shadow": True}


def test_categories_with_a_promise_and_with_costs_are_shown(served: Served, capsys: Output) -> None:
    server, address = served
    server.client.create_cache("faq", dim=8)
    server.client.create_category("faq", "sure", max_wrong=0.02, lookup_cost=1.0, model_cost=4.0)
    own = ("policy", "faq", "sure", "--address", address, "--set", "load_model=m-1")
    assert main([*own, "--set", "refresh_after=5", "--set", "refresh_after_at_load=60"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    shown = {line.split()[0]: line.split()[1:] for line in lines}
    assert shown["max_wrong"] == ["0.02", "own"]
    assert shown["load_model"] == ["m-1", "own"]
    assert shown["refresh_after_at_load"] == ["60", "own"]
    assert not {"rule", "break_even_hit_rate"} & set(shown)


def test_a_change_with_an_old_etag_or_of_nothing_there_is_refused(served: Served, capsys: Output) -> None:
    server, address = served
    server.client.create_cache("faq", dim=8)
    server.client.create_category("faq", "leaf")
    asked = ("--address", address, "--set", "threshold=0.2")
    assert main(["policy", "faq", "leaf", *asked, "--etag", "7"]) == 1
    assert "ABORTED" in capsys.readouterr().err
    assert main(["policy", "faq", "none", *asked]) == 1
    assert "NOT_FOUND" in capsys.readouterr().err
    assert main(["policy", "faq", "leaf", "--address", address, "--unset", "colour"]) == 1
    assert "'colour' cannot be changed" in capsys.readouterr().err
