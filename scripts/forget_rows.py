"""Forget entries: out of the store, out of what encoders have learned, out of every generation.

Selected is what any of the values names: live, expired, and gone where an encoder has learned it. Entries are
deleted with their responses, verdicts and remembered answers; encoders whose label part has learned one of
them are destroyed, the one that serves is renewed without it; stored codes of other entries stay as they are.
Files of generations are removed, the index is built anew, and SQLite's file is rewritten. A server may go on
meanwhile. Interrupted, run it again: it finishes.

Exit status 0 forgotten, 3 nothing is selected (what was deleted before is erased from disk all the same: the
index is built anew), 4 forgotten, but the
report names problems.

Examples:
  nearhit forget --cache faq --entry q17 --entry q18 --prove
  nearhit forget --cache faq --source crm/4711 --dry-run
"""

import argparse
from dataclasses import asdict
from typing import Any

from scripts.arguments import ProgressBars, add_config, add_json, print_result, read_config
from service.application import clock_ms
from service.database import check_schema, open_engine
from service.forget_proof import DIFFERENCE_TOLERANCE
from service.forget_report import ForgetReport, forget, preview_forgetting
from service.forgetting import ForgetSelection

NOTHING_SELECTED = 3
INCOMPLETE = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_config(parser)
    add_json(parser)
    parser.add_argument("--cache", required=True)
    selected = parser.add_mutually_exclusive_group(required=True)
    for name, values in (("entry", "entries"), ("tag", "tags"), ("source", "sources"), ("label", "labels")):
        selected.add_argument(
            f"--{name}",
            action="extend",
            nargs="+",
            default=[],
            metavar="ID" if name == "entry" else name.upper(),
            dest=values,
            help="repeatable",
        )
    parser.add_argument("--dry-run", action="store_true", help="say what would be forgotten, and end")
    parser.add_argument(
        "--prove",
        action="store_true",
        help="train label parts anew on the rest and compare; compare stored codes with those of before",
    )
    parser.add_argument(
        "--no-rewrite",
        action="store_true",
        help="leave SQLite's file as it is: copies of deleted rows may stay in its pages. Rewriting takes as"
        " much free disk again, and stores wait for it",
    )


def run(arguments: argparse.Namespace) -> int:
    """Forget."""
    config = read_config(arguments)
    selection = ForgetSelection(
        names=tuple(arguments.entries),
        tags=tuple(arguments.tags),
        sources=tuple(arguments.sources),
        labels=tuple(arguments.labels),
    )
    engine = open_engine(config.store)
    check_schema(engine)
    progress = ProgressBars(silent=arguments.json)
    if arguments.dry_run:
        report = preview_forgetting(engine, arguments.cache, selection)
    else:
        report = forget(
            engine,
            arguments.cache,
            selection,
            config=config,
            clock=clock_ms,
            progress=progress,
            prove=arguments.prove,
            rewrite=not arguments.no_rewrite,
        )
    progress.close()
    result = {"selection": {kind: v for kind, v in asdict(selection).items() if v}, **_flat(report)}
    if arguments.json:
        print_result(result, as_json=True)
    else:
        sentences = {"problem": result.pop("problems"), "note": result.pop("notes")}
        told = {name: _in_words(value) for name, value in result.items() if value not in ((), {}, None)}
        print_result(told, as_json=False)
        for kind, own in sentences.items():
            for sentence in own:
                print(f"{kind}: {sentence}")
    if report.problems:
        return INCOMPLETE
    return NOTHING_SELECTED if report.changes.selects_nothing else 0


def _flat(report: ForgetReport) -> dict[str, Any]:
    """The report as one level of names."""
    changes, files, kept = report.changes, report.files, report.kept
    return {
        "cache": report.cache,
        "outcome": _outcome(report),
        "entries_deleted": changes.entry_count,
        "learned_rows_removed": changes.learned_row_count,
        "feedback_deleted": changes.feedback_count,
        "answers_deleted": changes.answer_count,
        "encoders_destroyed": changes.destroyed,
        "encoders_renewed": changes.renewed,
        "active_encoder": report.active_encoder,
        "generations_removed": () if files is None else files.removed,
        "generation_built": None if files is None else files.built or None,
        "label_part_difference": report.max_difference,
        "label_part_tolerance": DIFFERENCE_TOLERANCE if report.proofs else None,
        "query_bits_changed": report.query_bits_changed,
        "code_bits_changed": report.code_bits_changed,
        "proofs": tuple(asdict(own) for own in report.proofs),
        "encoders_kept": kept.encoders,
        "encoders_untraced": kept.untraced,
        "verifiers_kept": kept.verifiers,
        "problems": report.problems,
        "notes": report.notes,
    }


def _outcome(report: ForgetReport) -> str:
    if report.changes.selects_nothing:
        return "nothing is selected"
    if report.files is None:
        return "dry run: nothing was changed"
    return "forgotten, but see problems" if report.problems else "forgotten"


def _in_words(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_in_words(own)}" for name, own in value.items())
    if value is None:
        return "unknown"
    if isinstance(value, tuple):
        return "; ".join(str(_in_words(own)) for own in value)
    return value
