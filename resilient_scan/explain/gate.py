"""How a scanner stands at the gate, in words."""

from __future__ import annotations

from collections.abc import Iterator

from resilient_scan.explain.model import Layer, Reason
from resilient_scan.quarantine import ScannerState
from resilient_scan.words import clean, counted, moment, span

_SOURCES = {"alert": "by an alert", "failures": "by its own failures", "probe": "by a failed probe"}


def is_probe(state: ScannerState) -> bool:
    """Say whether a scan that began now would be a probe."""
    return state.next_probe is not None and state.at >= state.next_probe


def gate_layer(state: ScannerState) -> Layer:
    """Describe the gate: whether it lets scans pass, why, and what is known about that."""
    return Layer("gate", _gate(state), (), tuple(_known(state)))


def gate_reasons(state: ScannerState) -> Iterator[Reason]:
    """Yield why the gate lets no scan pass, and what would change that."""
    if state.state == "enabled" or is_probe(state):
        return
    yield Reason("gate", f"{_how(state)}, reason: {clean(state.reason)}", _way_out(state))


def gate_verdict(state: ScannerState) -> str:
    """Say what a probe is for."""
    missing = max(1, state.needed - state.passed)
    return (
        "A scan would ask the source at once, as a probe, whatever cache and breaker say: "
        f"{'one more success' if missing == 1 else f'{missing} successes in a row'} "
        f"{'brings' if missing == 1 else 'bring'} the scanner back, a failure quarantines it for longer."
    )


def _gate(state: ScannerState) -> str:
    if state.state == "enabled":
        by_hand = f" by hand, against alerts, until {moment(state.until)}" if state.by_hand and state.until else ""
        return f"the scanner is in service{by_hand}: it is asked"
    if is_probe(state):
        how = "its cool-off is over" if state.state == "quarantined" else _how(state)
        return f"on probation: {how}; the next scan is a probe"
    left = "" if state.until is None else f", in {span(max(0.0, state.until - state.at))}"
    return f"out of service: {_how(state)}{left}; reason: {clean(state.reason)}"


def _how(state: ScannerState) -> str:
    who = f" ({clean(state.who)})" if state.who else ""
    until = "" if state.until is None else f" until {moment(state.until)}"
    if state.state == "disabled":
        return f"disabled by hand{who}{until}"
    if state.state == "quarantined":
        return f"quarantined {_SOURCES.get(state.source, state.source)}{who}{until}"
    return f"probing, {state.passed} of {counted(state.needed, 'probe')} succeeded"


def _way_out(state: ScannerState) -> str:
    enable = f"runner.enable({state.name!r}), `resilient-scan enable {state.name} --reason WHY`"
    if state.state == "disabled":
        return f"wait {span(max(0.0, (state.until or state.at) - state.at))}, or {enable}"
    left = span(max(0.0, (state.next_probe or state.at) - state.at))
    if state.probing:
        return f"its probe is under way; the next one begins when that has ended, in {left} at the latest; or {enable}"
    needed = f"{state.needed} successes in a row bring" if state.needed > 1 else "its success brings"
    return f"wait {left}: the first scan after that is a probe, and {needed} the scanner back; or {enable}"


def _known(state: ScannerState) -> Iterator[str]:
    if state.since is not None and state.state != "enabled":
        yield f"{state.state} since {moment(state.since)}, {span(max(0.0, state.at - state.since))} ago"
    if state.by_hand and state.beneath != "enabled":
        yield f"without the order by hand it would be {state.beneath}"
    if state.level:
        yield f"it has failed to come back {counted(state.level, 'time')}: the cool-off is that much longer"
    if state.failures:
        yield f"{counted(state.failures, 'execution')} in a row failed"
    for seen in state.evidence:
        blocks = ", keeps it out of service" if seen.blocks and state.state != "enabled" else ""
        text = ": ".join(part for part in (seen.name, seen.summary) if part)
        ago = span(max(0.0, state.at - seen.said_at))
        yield f"alert {clean(text)}: {seen.status} ({seen.source}, said {ago} ago){blocks}"
