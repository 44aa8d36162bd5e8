"""The committed code is what the .proto files give, and the files are documented."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROTOS = Path(__file__).parents[2] / "protos"
FILES = sorted(path.relative_to(PROTOS) for path in (PROTOS / "nearhit" / "v1").glob("*.proto"))
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py")


def test_committed_code_is_what_the_files_give(tmp_path: Path) -> None:
    services = [file for file in FILES if file.name.endswith("_service.proto")]
    for outputs, files in (
        (("--python_out", "--pyi_out"), FILES),
        (("--grpc_python_out",), services),
    ):
        command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(PROTOS)]
        command += [f"{output}={tmp_path}" for output in outputs] + [str(file) for file in files]
        subprocess.run(command, check=True, cwd=PROTOS)
    made, committed = (
        {path.name: path.read_text() for pattern in GENERATED for path in root.glob(f"nearhit/v1/{pattern}")}
        for root in (tmp_path, PROTOS)
    )
    assert made == committed


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_message_field_and_method_has_a_comment(file: Path) -> None:
    lines = (PROTOS / file).read_text().splitlines()
    declares = re.compile(r"^\s*(message|enum|service|rpc|optional|repeated|map<|[\w.]+ \w+ = |\w+ = )")
    undocumented = [
        f"{number + 1}: {line.strip()}"
        for number, line in enumerate(lines)
        if declares.match(line)
        and not line.startswith(("syntax", "package", "import"))
        and not lines[number - 1].strip().startswith("//")
    ]
    assert undocumented == []
