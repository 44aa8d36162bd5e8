"""The command `nearhit`."""

import argparse
import sys
from importlib import import_module

import sqlalchemy.exc
from nearhit.errors import NearhitError

from hashing.errors import HashingError
from index.errors import IndexFault
from scripts.arguments import CommandError
from service.errors import ConfigurationError, MigrationError, ServiceError

# Name of the command -> module with add_arguments(parser) and run(arguments) -> exit status.
COMMANDS = {
    "migrate": "scripts.migrate_database",
    "create": "scripts.create_cache",
    "policy": "scripts.show_policy",
    "simulate": "scripts.simulate",
    "serve": "scripts.serve",
    "store": "scripts.store_entry",
    "lookup": "scripts.lookup_answer",
    "search": "scripts.search_entries",
    "invalidate": "scripts.invalidate_entries",
    "train": "scripts.train_encoder",
    "train-verifier": "scripts.train_verifier",
    "build": "scripts.build_index",
    "update": "scripts.update_encoder",
    "migrate-embedder": "scripts.migrate_embedder",
    "worker": "scripts.run_worker",
    "encoders": "scripts.list_encoders",
    "jobs": "scripts.list_jobs",
    "forget": "scripts.forget_rows",
    "categories": "scripts.list_categories",
    "check": "scripts.check_cache",
    "bench": "scripts.bench.run",
    "demo": "scripts.demo",
    "demo-crossmodal": "scripts.demo_crossmodal",
}
_DESCRIPTION = """\
nearhit: a semantic cache and vector search service on learned binary codes.

  set up      migrate, create, serve
  use         store, lookup, search, invalidate, policy
                                           (speak to a running server)
  operate     train, train-verifier, build, update, migrate-embedder, worker, jobs, encoders, categories,
              forget, check
                                           (work on the database and index files)
  see         simulate, demo, demo-crossmodal, bench
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 failed, 2 wrong arguments, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="nearhit",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = (arguments if arguments is not None else sys.argv[1:])[:1]
    for name, module_name in COMMANDS.items():
        # Import only the command that runs, but all of them for the list of commands.
        if chosen and chosen[0] in COMMANDS and chosen[0] != name:
            continue
        module = import_module(module_name)
        summary = (module.__doc__ or "").strip()
        command = commands.add_parser(
            name,
            help=summary.splitlines()[0].rstrip("."),
            description=summary,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    parsed = parser.parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
    except (
        CommandError,
        ConfigurationError,
        MigrationError,
        ServiceError,
        NearhitError,
        HashingError,
        IndexFault,
        sqlalchemy.exc.SQLAlchemyError,
        OSError,
    ) as error:
        print(f"nearhit {parsed.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
