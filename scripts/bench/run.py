"""Measure nearhit through its own door.

nearhit bench search --data DIR   recall and latency of Search against exact float search
nearhit bench crash               kill -9 while storing and deleting; what was acknowledged must stay
"""

import argparse

from scripts.bench import crash, search

BENCHES = {"search": search, "crash": crash}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    benches = parser.add_subparsers(dest="bench", required=True, metavar="NAME")
    for name, module in BENCHES.items():
        summary = (module.__doc__ or "").strip()
        bench = benches.add_parser(name, help=summary.splitlines()[0].rstrip("."), description=summary)
        module.add_arguments(bench)
        bench.set_defaults(run_bench=module.run)


def run(arguments: argparse.Namespace) -> int:
    """Run one benchmark."""
    status: int = arguments.run_bench(arguments)
    return status
