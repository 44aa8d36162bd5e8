"""Measure nearhit beside its rivals, or through its own door.

nearhit bench scan --data DIR     exact Hamming search and the lookup cascade against faiss
nearhit bench search --data DIR   recall, latency, memory of nearest-neighbour search against five libraries
nearhit bench pairs --data DIR    the same question or not: codes and verifier on held-out labelled pairs
nearhit bench codes --data DIR    recall of codes, learned and not, against exact neighbours; class retrieval
nearhit bench crossmodal --data DIR   from image to text and back: mAP beside reruns of published methods
nearhit bench attack --data DIR   targeted attack on label codes, and training against it
nearhit bench lifelong --data DIR  learning in steps while nothing stored changes, beside retraining
nearhit bench build --data DIR    CPU, time and memory of a build against hnswlib's
nearhit bench start               from a server's start to its first answer, at 1M entries
nearhit bench swap                latency of lookups while a generation is built and swapped in
nearhit bench crash               kill -9 while storing and deleting; what was acknowledged must stay
nearhit bench update              lookups beside an update, and kill -9 of the worker: nothing may be lost
nearhit bench cache --data DIR    streams of questions: hits and wrong ones, beside thresholds and rivals
nearhit bench consent --data DIR  lookups that ask a verifier beside ones that do not
"""

import argparse
import sys
from importlib import import_module

BENCHES = (
    "scan",
    "search",
    "pairs",
    "codes",
    "crossmodal",
    "attack",
    "lifelong",
    "build",
    "start",
    "swap",
    "crash",
    "update",
    "consent",
    "cache",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    benches = parser.add_subparsers(dest="bench", required=True, metavar="NAME")
    chosen = [name for name in sys.argv[1:] if name in BENCHES][:1]
    for name in BENCHES:
        # Import only the benchmark that runs, but all of them for the list: each needs libraries of its own.
        if chosen and name != chosen[0]:
            continue
        module = import_module(f"scripts.bench.{name}")
        summary = (module.__doc__ or "").strip()
        bench = benches.add_parser(name, help=summary.splitlines()[0].rstrip("."), description=summary)
        module.add_arguments(bench)
        bench.set_defaults(run_bench=module.run)


def run(arguments: argparse.Namespace) -> int:
    """Run one benchmark."""
    status: int = arguments.run_bench(arguments)
    return status
