"""The benchmarks of a server's life, on few rows."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_start_and_swap_print_json_lines_and_share_a_store(nearhit: Run, tmp_path: Path) -> None:
    folder = tmp_path / "stored"
    few = ("--rows", "600", "--folder", str(folder), "--json", "--quick")
    started = lines_of(nearhit("bench", "start", "--starts", "1", *few))
    assert {line["bench"] for line in started} == {"start"}
    assert {line["metric"]: line["value"] for line in started}["rows"] == 600
    swapped = lines_of(nearhit("bench", "swap", "--new-rows", "300", *few))
    cases = {line["case"].rpartition(", ")[2] for line in swapped}
    assert {"before", "swap", "all"} <= cases
    assert [line["value"] for line in swapped if line["metric"] == "failed_or_wrong"] == [0.0]
    other = ("--rows", "700", "--folder", str(folder), "--json")
    assert "holds 600 rows, --rows asks for 700" in nearhit("bench", "start", *other, status=1).stderr


def lines_of(done: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    """The JSON lines that a command printed."""
    return [json.loads(line) for line in done.stdout.splitlines()]
