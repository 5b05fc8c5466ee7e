"""Find options that are traded far more than they are held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Annotated, Any, Final

from msgspec import Meta

from resilient_scan import Candidate, ScanContext

from ._asof import recent_day
from ._charts import ChartSettings, Usable, as_of, chart_scanner, each_ticker, tickers, trade_date
from ._listings import LARGEST
from ._sessions import is_current
from ._settings import read_settings
from .providers import yahoo, yahoo_market
from .providers.yahoo_market import Chain, Contract

SHARES_PER_CONTRACT: Final = 100
MIN_KNOWN: Final = 0.5
"""Share of the traded contracts whose open interest must be known; on a normal day it is known for 9 of 10."""
TOOL: Final = "yahoo_options"


class FlowSettings(ChartSettings, frozen=True, kw_only=True):
    """Settings of `options_flow`.

    Attributes:
        universe: the tickers to look at if the state has none; by default some of the largest companies.
        min_ratio: smallest ratio of a contract's volume to its open interest.
        min_premium: smallest premium of a contract: volume * last price * 100 shares, in dollars.
        high_premium: from this sum of premiums on, the priority is `high`; below it, `medium`.
    """

    universe: tuple[str, ...] = LARGEST
    min_ratio: Annotated[float, Meta(gt=0)] = 2.0
    min_premium: Annotated[float, Meta(ge=0)] = 25_000.0
    high_premium: Annotated[float, Meta(ge=0)] = 1_000_000.0


@chart_scanner(pipeline="edge", settings=FlowSettings, needs={})
def options_flow(state: Mapping[str, Any], context: ScanContext) -> Iterator[Candidate]:
    """Unusual option volume with money behind it.

    The rule: of the nearest expiry, contracts of the last session, not expired yet, whose volume is `min_ratio` times
    their open interest or more, with `min_premium` dollars or more behind it. A stock with such contracts is one
    candidate; its extras name the contract with the largest premium. (Option volume reveals informed trading: Pan and
    Poteshman, *The Information in Option Volume for Future Stock Prices*, Review of Financial Studies 19, 2006.)

    A contract without open interest has no ratio and is left out. Before the market opens, Yahoo may not know the open
    interest of most contracts. A chain of which that is true, or whose last trade is older than the last session, is
    left out as well; if it is more than one of five, the result is marked suspicious.
    """
    settings = read_settings(FlowSettings, context)
    state = as_of(settings, state)
    recent_day(state, context, "Yahoo's list of options")
    client = yahoo_market.client(settings.base_url, settings.transport)
    wanted = tickers(state, settings.universe, context.scanner)
    day = trade_date(state, context)
    usable, without = Usable("option chains", wanted, settings.min_usable, TOOL, context), 0
    for ticker, chain in each_ticker(wanted, lambda one: client.options(one, context), TOOL, context):
        session = last_traded(chain, day)
        if session is None:
            usable.leave_out(ticker, "has no options that were ever traded", "")
            without += 1
            continue
        if not is_current(session, day, context.now):
            usable.leave_out(ticker, f"has options that were last traded on {session}", "stale")
            continue
        candidate = find_flow(ticker, chain, day, settings)
        if candidate is not None:
            yield candidate
        if (reason := _unknown_interest(chain)) and candidate is None:
            usable.leave_out(ticker, reason, "missing")
        else:
            usable.count += 1
    context.log(TOOL, tickers=len(wanted), chains=usable.count)
    usable.judge(fatal=False)
    if without == len(wanted) > 1:  # of a single one it may be true
        context.doubt(f"there are no options at all of {', '.join(wanted[:5])}", kind="empty")


def last_traded(chain: Chain, day: date) -> date | None:
    """Return the last day until `day` on which a contract of the chain was traded; `None` if there is none."""
    traded = {yahoo.new_york_date(each.last_trade_date) for each in (*chain.calls, *chain.puts) if each.last_trade_date}
    return max((each for each in traded if each <= day), default=None)


def _unknown_interest(chain: Chain) -> str:
    """Return how few contracts of the chain have a known open interest, or an empty text if there are enough."""
    contracts = (*chain.calls, *chain.puts)
    traded = [contract for contract in contracts if contract.volume] or contracts
    known = sum(contract.open_interest > 0 for contract in traded)
    return "" if known >= MIN_KNOWN * len(traded) else f"{known} of its {len(traded)} contracts have an open interest"


def find_flow(ticker: str, chain: Chain, day: date, settings: FlowSettings) -> Candidate | None:
    """Apply the rule of `options_flow` to one chain."""
    session = last_traded(chain, day)
    sides = [[each for each in side if _unusual(each, day, session, settings)] for side in (chain.calls, chain.puts)]
    calls, puts = (sum(map(premium, side)) for side in sides)
    unusual = sorted((*sides[0], *sides[1]), key=lambda each: (-premium(each), each.contract_symbol))
    if not unusual:
        return None
    top, count = unusual[0], len(unusual)
    return Candidate(
        ticker=ticker,
        source="options_flow",
        context=f"{count} unusual contract{'s' * (count > 1)} with {calls + puts:,.0f} $ of premium "
        f"({calls:,.0f} in calls); the largest: {_name(top)} of {_expiry(top)}, volume {top.volume:,} "
        f"on an open interest of {top.open_interest:,}",
        priority="high" if calls + puts >= settings.high_premium else "medium",
        strategy="options_flow",
        extras={
            "contract": top.contract_symbol,
            "volume": top.volume,
            "open_interest": top.open_interest,
            "ratio": round(top.volume / top.open_interest, 4),
            "contracts": [each.contract_symbol for each in unusual],
            "call_premium": round(calls, 2),
            "put_premium": round(puts, 2),
        },
    )


def premium(contract: Contract) -> float:
    """Return the value of a contract's volume at its last price, in dollars."""
    return contract.volume * contract.last_price * SHARES_PER_CONTRACT


def _unusual(contract: Contract, day: date, session: date | None, settings: FlowSettings) -> bool:
    return (
        contract.open_interest > 0
        and _is_standard(contract)
        and _expiry(contract) >= day
        and yahoo.new_york_date(contract.last_trade_date) == session
        and contract.volume >= settings.min_ratio * contract.open_interest
        and premium(contract) >= settings.min_premium
    )


def _is_standard(contract: Contract) -> bool:
    """Say whether a contract covers 100 shares; a digit after the root marks minis and contracts after a split."""
    return contract.contract_size == "REGULAR" and not contract.contract_symbol[-16].isdigit()


def _expiry(contract: Contract) -> date:
    return datetime.fromtimestamp(contract.expiration, UTC).date()


def _name(contract: Contract) -> str:
    side = "call" if contract.contract_symbol[-9] == "C" else "put"
    return f"the {contract.strike:g} {side}"
