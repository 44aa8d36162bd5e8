"""Look up the stored answer to a question. Exit status 0 on a hit, 3 on a miss.

Examples:
  nearhit lookup faq billing "how do I cancel my subscription?"
  nearhit lookup faq billing --embedding question.npy --json
"""

import argparse
from datetime import timedelta

from nearhit import Client
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb

from scripts.arguments import add_address, add_json, positive_number, print_result
from scripts.query_arguments import add_query, read_embedding

_MODES = {
    "serve": cache_pb.LOOKUP_MODE_SERVE,
    "bypass": cache_pb.LOOKUP_MODE_BYPASS,
    "refresh": cache_pb.LOOKUP_MODE_REFRESH,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_address(parser)
    add_json(parser)
    parser.add_argument("cache")
    parser.add_argument("category")
    add_query(parser)
    parser.add_argument("--threshold", type=float, help="a stricter cosine distance than the category's")
    parser.add_argument(
        "--max-age",
        type=positive_number,
        metavar="SECONDS",
        help="of an entry that answers; default: any",
    )
    parser.add_argument("--mode", choices=tuple(_MODES), default="serve", help="default %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """Look up."""
    embedding = read_embedding(arguments)
    with Client(arguments.address, timeout_seconds=arguments.timeout) as client:
        answer = client.lookup(
            arguments.cache,
            arguments.category,
            embedding=embedding,
            text=arguments.text,
            embedder_id=arguments.embedder_id,
            scope=arguments.scope,
            threshold=arguments.threshold,
            max_age=None if arguments.max_age is None else timedelta(seconds=arguments.max_age),
            mode=_MODES[arguments.mode],
            explain=True,
        )
    is_hit = answer.outcome == cache_pb.LOOKUP_OUTCOME_HIT
    print_result(
        {
            "outcome": "hit" if is_hit else "miss",
            "reason": cache_pb.LookupReason.Name(answer.reason).removeprefix("LOOKUP_REASON_").lower(),
            "explanation": answer.explanation,
            "response": answer.response.decode(errors="replace"),
            "entry": answer.entry,
            "distance": round(answer.distance, 4) if answer.HasField("distance") else None,
            "probability": round(answer.probability, 4) if answer.HasField("probability") else None,
            "threshold": answer.threshold,
            "rule": pb.RuleSource.Name(answer.rule_source).removeprefix("RULE_SOURCE_").lower(),
            "risk": [answer.risk_low, answer.risk, answer.risk_high] if answer.HasField("risk") else None,
            "risk_limit": answer.risk_limit if answer.HasField("risk_limit") else None,
            "load": answer.load if answer.HasField("load") else None,
            "mapped": answer.mapped,
            "refresh_due": answer.refresh_due,
            "search_path": pb.SearchPath.Name(answer.search_path).removeprefix("SEARCH_PATH_").lower(),
            "candidates_examined": answer.candidates_examined,
            "latency_us": answer.latency_us,
            "lookup_token": answer.lookup_token,
        },
        as_json=arguments.json,
    )
    return 0 if is_hit else 3
