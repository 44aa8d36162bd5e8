"""Show from a log of requests what a policy would have done: hits, wrong ones, load shed, costs.

The log is replayed in the order of its times: what the policy does not serve is computed, which is the logged
response, and stored. A hit is right where the logged response is the one that was served. Lookups are decided
by the code of the server, with an exact search; there is no verifier and there are no verdicts of users, so a
category with `max_wrong` learns where the policy sets `compare_responses`, and is cold otherwise.

A log is .jsonl, an object a line: time (seconds), category, embedding or text, response; and optionally cost,
load (of the model, 0 to 1), scope. Or .npz: embeddings [n, dim], responses [n], and optionally categories,
times, costs, loads. Texts alone are embedded by the [embedder] of the configuration.

Load is shed where the model was not called. Of the cost that this saves, `lookup_cost` a search and
`hit_cost` a hit are taken off. Break-even is by the policy's `model_cost`, without it by the mean logged cost
of the category; bypass is told with `auto_bypass`, otherwise what it would have been.

Examples:
  nearhit simulate --log requests.jsonl --policy threshold=0.08 ttl=3600 max_entries=10000
  nearhit simulate --log requests.npz --policy max_wrong=0.02 compare_responses=true
  nearhit simulate --log requests.npz --compare threshold=0.05,0.1,0.15 --json
  nearhit simulate --log requests.jsonl --policy load_model=m max_threshold_at_load=0.2 refresh_after=60
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.arguments import CommandError, ProgressBars, add_config, add_json, read_config
from scripts.request_log import RequestLog, read_log
from scripts.show_policy import to_message
from scripts.simulated_cache import Outcome, Request, SimulatedCache
from service.break_even import break_even_hit_rate, wilson
from service.convert_policy import to_new_policy
from service.lookup import LookupReason
from service.policy import OwnPolicy, Policy, check_policy, resolve

BUSY = 0.5
"""Load from which on a request counts as one at load."""

MOST_COMPARED = 100

_ALL = "all requests"
_UNSEARCHED = (LookupReason.FINGERPRINT, LookupReason.UNPROFITABLE)
_PROGRESS_EACH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_config(parser)
    add_json(parser)
    parser.add_argument("--log", type=Path, required=True, metavar="FILE", help=".jsonl or .npz; see above")
    parser.add_argument(
        "--policy",
        action="extend",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        help="of every category, as `nearhit policy --set` takes it; otherwise the defaults hold",
    )
    parser.add_argument(
        "--compare",
        metavar="FIELD=VALUE,VALUE...",
        help="replay once for each value of one field, and print the totals",
    )


def run(arguments: argparse.Namespace) -> int:
    """Replay and print."""
    variants = _variants(arguments.policy, arguments.compare)
    log = read_log(arguments.log, embedder=read_config(arguments).embedder)
    for number, (name, own) in enumerate(variants):
        progress = ProgressBars(silent=arguments.json)
        tallies = replay(log, resolve([own]), progress=progress)
        progress.close()
        if arguments.json:
            told = {key: tally.figures() for key, tally in tallies.items()}
            total = told.pop(_ALL)
            print(json.dumps({"policy": dict(own), "all": total, "categories": told}))
        elif arguments.compare:
            print("\n".join(_lines({name: tallies[_ALL]}, with_head=number == 0)))
        else:
            print("\n".join(_lines(tallies, with_head=True)))
    return 0


def to_policy(assignments: Sequence[str], *, option: str = "--policy") -> OwnPolicy:
    """The fields that FIELD=VALUE set. Raises: CommandError; InvalidRequestError: a value cannot be."""
    message, _ = to_message(assignments, (), cache="log", option=option)
    own, parent = to_new_policy(message, cache="log")
    policy = resolve([own])
    check_policy(policy, category="of the log")
    if parent:
        raise CommandError("parent: categories of a log have none")
    if policy.min_probability is not None:
        raise CommandError("min_probability needs a verifier, which a replay does not have")
    if policy.shadow:
        raise CommandError("shadow=true serves nothing: replay without it")
    return own


@dataclass(slots=True)
class Tally:
    """Counts of a replay. busy: of requests at a load of BUSY or more. shed: the model was not called.
    cost: in the unit of the log."""

    break_even: float | None = None
    requests: int = 0
    hits: int = 0
    wrong: int = 0
    shed: int = 0
    busy: int = 0
    busy_shed: int = 0
    cost: float = 0.0
    cost_saved: float = 0.0
    unsearched: int = 0
    is_bypass: bool = False

    def add(self, request: Request, outcome: Outcome, policy: Policy) -> None:
        """Take one request."""
        is_hit, is_busy = outcome.response is not None, request.load >= BUSY
        is_shed = not outcome.is_computed
        cost = request.cost or policy.model_cost
        self.requests += 1
        self.hits += is_hit
        self.wrong += is_hit and outcome.response != request.response
        self.shed += is_shed
        self.busy += is_busy
        self.busy_shed += is_busy and is_shed
        self.cost += cost
        self.cost_saved += cost * is_shed - policy.hit_cost * is_hit
        self.cost_saved -= policy.lookup_cost * (outcome.reason not in _UNSEARCHED)
        self.unsearched += outcome.is_bypassed

    def figures(self) -> dict[str, Any]:
        """What is told of it; None where there is nothing to tell of."""
        low, high = wilson(self.hits, self.requests)
        return {
            "requests": self.requests,
            "hits": self.hits,
            "hit_rate": self.hits / self.requests,
            "hit_rate_low": low,
            "hit_rate_high": high,
            "wrong": self.wrong,
            "wrong_of_hits": self.wrong / self.hits if self.hits else None,
            "wrong_of_requests": self.wrong / self.requests,
            "load_shed": self.shed / self.requests,
            "load_shed_at_load": self.busy_shed / self.busy if self.busy else None,
            "cost": self.cost,
            "cost_saved": self.cost_saved,
            "break_even_hit_rate": self.break_even,
            "bypassed": self.unsearched,
            "bypass": ("acted" if self.is_bypass else "would act") if self.unsearched else "none",
        }


def replay(log: RequestLog, policy: Policy, *, progress: ProgressBars | None = None) -> dict[str, Tally]:
    """What the policy does with a log: of all requests, then by category. Raises: CommandError."""
    names = sorted(set(log.categories))
    break_evens = _break_evens(log, policy)
    tallies = {name: Tally(break_evens.get(name), is_bypass=policy.auto_bypass) for name in names}
    total = Tally(is_bypass=policy.auto_bypass)
    cache = SimulatedCache(dict.fromkeys(names, policy), dim=log.embeddings.shape[1], break_evens=break_evens)
    for i, name in enumerate(log.categories):
        request = Request(
            time_ms=int(log.times_ms[i]),
            category=name,
            vector=log.embeddings[i],
            response=log.responses[i],
            text=log.texts[i],
            scope=log.scopes[i],
            cost=float(log.costs[i]),
            load=float(log.loads[i]),
        )
        outcome = cache.ask(request)
        for tally in (total, tallies[name]):
            tally.add(request, outcome, policy)
        if progress is not None and i % _PROGRESS_EACH == 0:
            progress("replay", i, len(log))
    return {_ALL: total, **tallies}


def _break_evens(log: RequestLog, policy: Policy) -> dict[str, float]:
    """Break-even by category; without the model's cost in the policy by the mean of what is logged."""
    costs: dict[str, list[float]] = {}
    for name, cost in zip(log.categories, log.costs.tolist(), strict=True):
        costs.setdefault(name, [])
        if cost:
            costs[name].append(cost)
    found = {}
    for name, own in costs.items():
        mean = sum(own) / len(own) if own else 0.0
        model_cost = policy.model_cost or mean
        if model_cost and policy.hit_cost >= model_cost:
            raise CommandError(
                f"hit_cost is {policy.hit_cost:g}, no less than the mean cost in category {name}, {mean:g}"
            )
        break_even = break_even_hit_rate(replace(policy, model_cost=model_cost))
        if break_even is not None:
            found[name] = break_even
    return found


def _variants(assignments: Sequence[str], compared: str | None) -> list[tuple[str, OwnPolicy]]:
    """Each policy to replay, and what tells it from the others."""
    if compared is None:
        return [("", to_policy(assignments))]
    field, is_given, texts = compared.partition("=")
    values = [text.strip() for text in texts.split(",")]
    if not is_given or not all(values):
        raise CommandError(f"--compare {compared}: give FIELD=VALUE,VALUE...")
    if len(values) > MOST_COMPARED:
        raise CommandError(f"--compare: {len(values)} values, at most {MOST_COMPARED} are replayed")
    return [
        (f"{field}={value}", to_policy([*assignments, f"{field}={value}"], option="--policy or --compare"))
        for value in values
    ]


def _lines(tallies: Mapping[str, Tally], *, with_head: bool) -> list[str]:
    head = f"{'':<26}{'requests':>9}{'hits':>8}  {'95% interval':<17}{'wrong of hits':>13}{'of all':>8}"
    head += f"{'shed':>8}{'at load':>9}{'saved':>12}{'break-even':>12}  bypass"
    return [*([head] if with_head else []), *(_line(name, tally) for name, tally in tallies.items())]


def _line(name: str, tally: Tally) -> str:
    told = tally.figures()
    between = f"{_percent(told['hit_rate_low'])} to {_percent(told['hit_rate_high'])}"
    bypass = told["bypass"] if not tally.unsearched else f"{told['bypass']} ({tally.unsearched})"
    return (
        f"{name:<26}{tally.requests:>9}{_percent(told['hit_rate']):>8}  {between:<17}"
        f"{_percent(told['wrong_of_hits']):>13}{_percent(told['wrong_of_requests']):>8}"
        f"{_percent(told['load_shed']):>8}{_percent(told['load_shed_at_load']):>9}"
        f"{tally.cost_saved:>12.6g}{_percent(tally.break_even):>12}  {bypass}"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"
