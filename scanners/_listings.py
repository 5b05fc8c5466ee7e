"""Tell common shares from other listings: by their symbols, and funds by their listing.

Warrants, rights and units can be recognised by how exchanges write them: on Nasdaq a fifth letter (W, R, U; Z for
anything else), elsewhere a mark after the root (`OPFI+`, `CELG^`, `ABC.WS`, `ABC-U`, `ABC=`). Nothing in a symbol says
that it is a fund's. A listing does (`AlphaVantage.listing`): most funds are called so there, and of the others, which
are called stocks, the name says it, or the exchange: on NYSE Arca and BATS, hardly anything but funds is listed.
"""

from __future__ import annotations

import re
from typing import Final

_COMMON: Final = re.compile(r"[A-Z]{1,5}(?:[.-][ABCK])?")
_OTHER: Final = re.compile(r"[A-Z]{4}[WRUZ]")
_CLASS: Final = re.compile(r"([A-Z]+)-([ABCK])")

_FUND: Final = re.compile(
    r"\b(?:ETFs?|ETNs?|ETPs?|Funds?|iShares|SPDR|ProShares|Direxion|MicroSectors|GraniteShares|YieldMax|Grayscale)\b"
    r"|\b[1-5](?:\.\d+)?X\b"  # twice as far: `2X Long`; not `10x Genomics`
    r"|\b(?:Bitcoin|Ether(?:eum)?|Gold|Silver|Solana|XRP)\b.*\bTrust\b"
    r"|\bDaily (?:Target|Long|Short|Inverse|Bull|Bear)\b",
    re.IGNORECASE,
)
_COMPANY: Final = re.compile(r"\b(?:Inc|Corp|Corporation|Ltd|PLC|LP|Co)\b", re.IGNORECASE)
_OF_FUNDS: Final = frozenset({"NYSE ARCA", "BATS"})

LARGEST: Final = ("AAPL", "AMZN", "AVGO", "GOOGL", "JPM", "LLY", "META", "MSFT", "NVDA", "TSLA")


def is_common_share(symbol: str) -> bool:
    """Say whether a symbol looks like a common share; a fund's looks like one too."""
    return bool(_COMMON.fullmatch(symbol)) and not _OTHER.fullmatch(symbol)


def with_point(symbol: str) -> str:
    """Return a symbol with its share class after a point, as in candidates: `BRK.B` for `BRK-B`."""
    return _CLASS.sub(r"\1.\2", symbol) if _CLASS.fullmatch(symbol) else symbol


def is_fund(kind: str, name: str, exchange: str) -> bool:
    """Say whether a listing is a fund's.

    Args:
        kind: what the listing calls it, `Stock` or `ETF`.
        name: the company's or the fund's name.
        exchange: where it is listed, such as `NYSE ARCA`.
    """
    if kind != "Stock" or _FUND.search(name):
        return True
    return exchange in _OF_FUNDS and not _COMPANY.search(name)
