"""Search the entries of a cache.

Examples:
  nearhit search faq "cancel a subscription" --top-k 5
  nearhit search faq --embedding question.npy --min-recall 1
  nearhit search faq --embedding question.npy --by-label --json
  nearhit search shop --embedding photo.npy --modality image --target-modality text
"""

import argparse
import json

from nearhit import Client
from nearhit.v1 import resources_pb2 as pb

from scripts.arguments import add_address, add_json, positive_integer
from scripts.query_arguments import add_query, read_embedding

# Without CASCADE: that takes a threshold, which a search does not have.
_PATHS = {
    "auto": pb.SEARCH_PATH_UNSPECIFIED,
    "ivf": pb.SEARCH_PATH_IVF,
    "scan": pb.SEARCH_PATH_SCAN,
    "hnsw": pb.SEARCH_PATH_HNSW,
    "exact": pb.SEARCH_PATH_EXACT,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_address(parser)
    add_json(parser)
    parser.add_argument("cache")
    add_query(parser)
    parser.add_argument("--top-k", type=positive_integer, default=10, help="default %(default)s")
    parser.add_argument("--category", action="append", default=[], help="repeatable; default: all")
    parser.add_argument("--tag", action="append", default=[], help="entries with any of these; repeatable")
    parser.add_argument("--path", choices=tuple(_PATHS), default="auto", help="default %(default)s")
    parser.add_argument(
        "--min-recall",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the true nearest to find, 0 (default: the server's choice) to 1 (exact)",
    )
    parser.add_argument("--by-label", action="store_true", help="entries of the nearest classes")
    parser.add_argument("--modality", default="", help="of the query; default: text")
    parser.add_argument("--target-modality", default="", help="of the entries; default: the query's own")


def run(arguments: argparse.Namespace) -> int:
    """Search."""
    embedding = read_embedding(arguments)
    with Client(arguments.address, timeout_seconds=arguments.timeout) as client:
        found = client.search(
            arguments.cache,
            embedding=embedding,
            text=arguments.text,
            embedder_id=arguments.embedder_id,
            top_k=arguments.top_k,
            categories=arguments.category,
            tags=arguments.tag,
            scope=arguments.scope or None,
            path=_PATHS[arguments.path],
            min_recall=arguments.min_recall,
            by_label=arguments.by_label,
            modality=arguments.modality,
            target_modality=arguments.target_modality,
            view=pb.ENTRY_VIEW_BASIC,
        )
    rows = [
        {
            "distance": round(result.distance, 4),
            "mapped": result.mapped,
            "hamming": result.hamming_distance if result.HasField("hamming_distance") else None,
            "category": result.entry.category.rpartition("/")[2],
            "labels": list(result.entry.labels),
            "entry": result.entry.name.rpartition("/")[2],
            "text": result.entry.text,
        }
        for result in found.results
    ]
    path = pb.SearchPath.Name(found.search_path).removeprefix("SEARCH_PATH_").lower()
    if arguments.json:
        print(json.dumps({"path": path, "candidates_examined": found.candidates_examined, "results": rows}))
        return 0
    print(f"path {path}, {found.candidates_examined} candidates examined, seq {found.seq}")
    for result, row in zip(found.results, rows, strict=True):
        labels = ",".join(result.entry.labels) or "-"
        print(f"{row['distance']:.4f}  {row['category']:<16} {labels:<16} {row['entry']:<34} {row['text']}")
    return 0
