"""Show a cache's categories: what they hold, their policies, and whether what is looked up in them shifted.

A server learns from the first lookups of a category how near they come to what it holds, watches the later
ones, and raises an alarm when they have moved. --acknowledge clears the alarm and has a running server learn
anew what is usual, also where there is no alarm. Counts are a few seconds old; `nearhit serve --print-config`
has the settings under [shift].

Examples:
  nearhit categories --cache faq
  nearhit categories --cache faq --acknowledge billing
"""

import argparse
from dataclasses import asdict
from typing import Any

from scripts.arguments import add_config, add_json, print_result, read_config
from scripts.list_encoders import to_time
from service.application import clock_ms
from service.category_shift import load_alarm
from service.database import check_schema, open_engine, reading, writing
from service.decision_rules import DecisionRule, RuleSource, read_rules
from service.records import CategoryRecord, ShiftRecord
from service.rows import read_cache, read_categories, read_category
from service.shift_store import acknowledge_shift, read_shifts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_config(parser)
    add_json(parser)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--acknowledge", metavar="CATEGORY", help="clear its shift alarm, learn anew")


def run(arguments: argparse.Namespace) -> int:
    """Acknowledge what is asked for, then show."""
    engine = open_engine(read_config(arguments).store)
    check_schema(engine)
    if arguments.acknowledge is not None:
        with writing(engine) as connection:
            category = read_category(
                connection, read_cache(connection, arguments.cache), arguments.acknowledge
            )
            acknowledge_shift(connection, category, now_ms=clock_ms())
    with reading(engine) as connection:
        cache = read_cache(connection, arguments.cache)
        found = read_categories(connection, cache.id)
        shifts = read_shifts(connection, cache.id)
        rules = read_rules(connection, cache.id, {})
    if not found and not arguments.json:
        print(f"{cache.name} has no category: make one with `nearhit create {cache.name} --category NAME`")
    for category in found:
        shift = shifts.get(category.id, ShiftRecord())
        if arguments.json:
            print_result(_as_document(category, shift, rules.get(category.id)), as_json=True)
        else:
            print("\n".join(_lines(category, shift, rules.get(category.id))))
    return 0


def _as_document(category: CategoryRecord, shift: ShiftRecord, rule: DecisionRule | None) -> dict[str, Any]:
    alarm, since_ms = load_alarm(shift.alarm)
    return {
        "category": category.name,
        "entries": category.entry_count,
        "size_bytes": category.size_bytes,
        "hits": category.hit_count,
        "misses": category.miss_count,
        "shadow_hits": category.shadow_hit_count,
        "bypasses": category.bypass_count,
        "parent": category.parent,
        "policy": asdict(category.policy),
        "create_time": to_time(category.create_ms),
        "rule": None
        if rule is None
        else {
            "source": rule.source.value,
            "risk_limit": rule.risk_limit,
            "judged": rule.judged_count,
            "wrong": rule.wrong_count,
        },
        "shift": {
            "state": shift.stage,
            "lookups": shift.lookup_count,
            "alarm_time": None if shift.alarm_ms is None else to_time(shift.alarm_ms),
            "since_time": None if since_ms is None else to_time(since_ms),
            "explanation": None if alarm is None else alarm.explain(),
            "alarm": None if alarm is None else asdict(alarm),
        },
    }


def _lines(category: CategoryRecord, shift: ShiftRecord, rule: DecisionRule | None) -> list[str]:
    policy = category.policy
    limits = [f"threshold {policy.threshold:g}", policy.eviction]
    if policy.min_probability is not None:
        limits.append(f"min_probability {policy.min_probability:g}")
    if policy.ttl_ms is not None:
        limits.append(f"ttl {policy.ttl_ms / 1000:g} s {policy.ttl_mode}")
    if policy.max_entries:
        limits.append(f"at most {policy.max_entries} entries")
    if policy.max_bytes:
        limits.append(f"at most {policy.max_bytes} bytes")
    if policy.refresh_after_ms is not None:
        limits.append(f"refresh after {policy.refresh_after_ms / 1000:g} s")
    if policy.shadow:
        limits.append("shadow")
    if category.parent:
        limits.append(f"inherits from {category.parent}")
    served = f"hits {category.hit_count}  misses {category.miss_count}"
    lines = [
        f"{category.name:<24} entries {category.entry_count}  bytes {category.size_bytes}  {served}  "
        f"({', '.join(limits)})  shift: {shift.stage}, {shift.lookup_count} lookups"
    ]
    if policy.max_wrong is not None:
        promised = f"  promised: at most {policy.max_wrong:.3g} of {policy.max_wrong_of} wrong; "
        lines.append(promised + _told(rule))
    if shift.alarm_ms is not None:
        alarm, since_ms = load_alarm(shift.alarm)
        begin = "" if since_ms is None else f", since about {to_time(since_ms)}"
        what = "what moved cannot be read" if alarm is None else alarm.explain()
        lines.append(f"  alarm of {to_time(shift.alarm_ms)}{begin}: {what}")
    return lines


def _told(rule: DecisionRule | None) -> str:
    """How a category with a target decides."""
    if rule is None or rule.source is RuleSource.COLD:
        return "too little is known, only what is nearly equal is served"
    return (
        f"{rule.source.value} from {rule.judged_count} judged lookups ({rule.wrong_count} wrong),"
        f" served up to a risk of {rule.risk_limit:.3g}"
    )
