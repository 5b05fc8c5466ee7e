"""Find the tickers of real companies in texts.

Hundreds of common words are tickers too (ALL, IT, NOTE, SHIP, MS), and a list of them would be out of date with the
next listing. A word in capitals is taken for a ticker only if something else says so, its *signal*:

    a sign                      $gme
    an exchange                 NYSE: GM, (NASDAQ:AMD)
    the company's name          Morgan Stanley beat, and MS fell
    trading vocabulary          GM calls, shares of CAT, short MS, AMD 120c; right next to it
    its neighbours in a list    $AMD, NVDA and TSLA; or three of them: SKT, SRG or SPG

The last two are weak: people write "sell ALL shares" too. They do not count for a word that the posts at hand use as an
ordinary word, which is in small letters at least as often as in capitals. Nothing counts in a text that is mostly in
capitals, except for the sign and the exchange.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

_LINK = re.compile(r"https?://\S+|www\.\S+")
_TOKEN = re.compile(r"(?<![\w$&.'’])(\$?)([A-Za-z]{1,6})(?:[.\-/]([A-Za-z]{1,2}))?(?![\w$&])")
_WORD = re.compile(r"[A-Za-z]{2,}")
_EXCHANGE = re.compile(r"\b(?:NYSE(?: ?American| ?Arca)?|NASDAQ|AMEX|OTC(?:QB|QX|BB)?|TSX|CBOE)\s?:\s?$", re.IGNORECASE)

_DEAL: Final = (
    r"buy(?:ing|s)?|bought|sell(?:ing|s)?|sold|short(?:ing|ed|s)?|long(?:ing|ed)?|hold(?:ing|s)?|own(?:ing|ed|s)?"
    r"|trad(?:e|ing|ed)|tickers?|symbol"
)
_ABOUT: Final = (
    r"shares?|calls?|puts?|options?|leaps?|positions?|stakes?|stock|earnings|dd|due diligence|bullish|bearish"
    r"|invest(?:ed|ing|ment)?|all in|long|short|bet(?:ting)?|yolo(?:ed|ing)?|exposure|bagholding|spreads?|csps?"
)
_BEFORE = re.compile(
    rf"(?:\b(?:{_DEAL})|\b(?:{_ABOUT})\s+(?:of|on|in|for|from|into|with|to))[ \t:\"'(\[*_]{{1,3}}$", re.IGNORECASE
)
_AFTER = re.compile(
    r"^(?:['’]s)?[ \t)\]*_\"'-]{1,3}(?:"
    r"(?:\$?\d+(?:\.\d+)?\s?)?(?:calls?|puts?|leaps?|shares|options?|spreads?|csps?)\b"
    r"|\$?\d+(?:\.\d+)?\s?[cp]\b"
    r"|(?:stock|share) price\b|price target\b|short interest\b|market cap\b"
    r"|(?:earnings|dividends?|guidance|valuation)\b"
    r"|(?:bulls|bears|bagholders?|shareholders?|longs|shorts)\b"
    r"|(?:is|was|are|closed|opened|trades|trading|jumped|fell|dropped|rose|rallied|popped|tanked|dipped|ripped|gapped)?"
    r"\s?(?:up|down|at|by|to|above|below|under|over|near|@|\+|-)?\s?[$+-]\s?\d"
    r"|(?:is|was|are|jumped|fell|dropped|rose|rallied|popped|tanked|dipped|gapped)?\s?(?:up|down|by|@)?\s?\d+(?:\.\d+)?\s?%"
    r"|(?:is|are|looks) (?:over|under)valued\b|(?:beat|missed) (?:on )?(?:earnings|estimates|eps|revenue)\b"
    r")",
    re.IGNORECASE,
)
_JARGON: Final = frozenset(
    {"ATH", "ATM", "CC", "CSP", "DCA", "DD", "DTE", "EPS", "ER", "FD", "ITM", "IV", "OTM", "PT", "TA"}
)
"""Trading vocabulary itself, which stands next to trading vocabulary all the time: `0 DTE calls`."""
_BETWEEN = re.compile(r"\s*(?:,|/|&|\band\b|\bor\b|\bvs\.?\B)(?:\s*(?:and|or|&))?\s*", re.IGNORECASE)  # in a list
_LIST: Final = 3  # tickers in a row, of
_LIST_LETTERS: Final = 3  # letters or more, that are a signal for each other

_SUFFIX = re.compile(
    r"(?:[\s,]+(?:inc|corp|corporation|co|company|companies|ltd|limited|plc|llc|lp|nv|n\.v|sa|s\.a|ag|se|holdings?|group"
    r"|trust|the|common stock|new|adr|class [a-z]))+\.?$|/[a-z]{2,3}/?$",
    re.IGNORECASE,
)
_SHORTEST_NAME: Final = 4  # letters of a name of one word


class Companies:
    """All tickers that exist, and what their companies are called.

    Args:
        titles: the companies' names by ticker, such as `MORGAN STANLEY` for `MS`.
    """

    def __init__(self, titles: Mapping[str, str]) -> None:
        self._names = {ticker: _without_suffixes(title) for ticker, title in titles.items()}
        firsts = Counter(name.partition(" ")[0] for name in {name.lower() for name in self._names.values()})
        self._unique = {first for first, count in firsts.items() if count == 1 and len(first) > _SHORTEST_NAME}

    def __contains__(self, ticker: object) -> bool:
        return ticker in self._names

    def is_named(self, ticker: str, text: str) -> bool:
        """Say whether a text calls the company by its name: all of it, or its first word if that is nobody else's."""
        name = self._names[ticker]
        first = name.partition(" ")[0]
        forms = [name, *([first] if first.lower() in self._unique else [])]
        return any(_stands_in(form, text) for form in forms if form.upper() != ticker)


class Usage:
    """How words are written in some texts: in capitals, or otherwise."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._capitals: Counter[str] = Counter()
        self._others: Counter[str] = Counter()
        for text in texts:
            for word in _WORD.findall(text):
                (self._capitals if word.isupper() else self._others)[word.upper()] += 1

    def is_word(self, ticker: str) -> bool:
        """Say whether a ticker is written like an ordinary word as often as in capitals, or more often."""
        root = ticker.partition(".")[0]
        return self._others[root] >= max(1, self._capitals[root])


class _Found(NamedTuple):
    ticker: str
    sure: bool  # has a strong signal
    hinted: bool  # has trading vocabulary next to it
    start: int
    end: int


def mentions(text: str, companies: Companies, usage: Usage | None = None, *, post: str = "") -> list[str]:
    """Return the tickers in a text, in order and with repetitions.

    With the sign, a ticker counts in upper and lower case (`$gme`). Without it, it counts in capitals, with at least
    two letters, and if it has another signal anywhere in the post (see the top of this file). `BRK.B`, `BRK-B` and
    `BRK/B` are the same ticker. Links are ignored.

    Args:
        text: what somebody wrote.
        companies: all tickers that exist.
        usage: how words are written in the posts at hand; by default in this post.
        post: all of the post, if the text is a part of it.
    """
    meant = _meant(post or text, companies, usage)
    return [each.ticker for each in _candidates(text, companies) if each.sure or each.ticker in meant]


def _meant(post: str, companies: Companies, usage: Usage | None) -> set[str]:
    """Return the tickers that have a signal in a post."""
    text = _without_links(post)
    found = list(_candidates(text, companies))
    known = {each.ticker for each in found if each.sure}
    bare = {each.ticker for each in found} - known
    if not bare or _mostly_capitals(text, companies):
        return known
    usage = usage or Usage([text])
    words = _JARGON | {ticker for ticker in bare if usage.is_word(ticker)}
    known |= {ticker for ticker in bare if companies.is_named(ticker, text)}
    known |= {each.ticker for each in found if each.hinted} - words
    return known | (_listed(text, found, known) - words)


def _without_links(text: str) -> str:
    return _LINK.sub(" ", text)


def _candidates(text: str, companies: Companies) -> Iterator[_Found]:
    """Yield what may be a ticker, with what stands right next to it."""
    text = _without_links(text)
    for match in _TOKEN.finditer(text):
        sign, root, branch = match.groups(default="")
        ticker = _known(root.upper(), branch.upper(), companies)
        if not ticker:
            continue
        before, after = text[max(0, match.start() - 40) : match.start()], text[match.end() : match.end() + 40]
        branch = branch if "." in ticker else ""
        end = match.end() if branch or not match[3] else match.start(3) - 1
        if sign or (root.isupper() and _EXCHANGE.search(before)):
            yield _Found(ticker, True, False, match.start(), end)
        elif len(ticker) > 1 and root.isupper() and (not branch or branch.isupper()):
            hinted = bool(_BEFORE.search(before) or _AFTER.match(after))
            yield _Found(ticker, False, hinted, match.start(), end)


def _known(root: str, branch: str, companies: Companies) -> str:
    """Return the ticker that is meant, or an empty text; in `AAPL.A`, the `A` may begin the next sentence."""
    whole = f"{root}.{branch}"
    if branch and whole in companies:
        return whole
    return root if root in companies else ""


def _listed(text: str, found: list[_Found], known: set[str]) -> set[str]:
    """Return the tickers of lists in which one is known, or that have `_LIST` of them."""
    named: set[str] = set()
    for row in _lists(text, found):
        tickers = {each.ticker for each in row}
        long = len(tickers) >= _LIST and all(len(ticker) >= _LIST_LETTERS for ticker in tickers)
        if len(row) > 1 and (long or tickers & known):
            named |= tickers
    return named


def _lists(text: str, found: list[_Found]) -> Iterator[list[_Found]]:
    """Yield what stands in a row, with nothing but commas, slashes and the like in between."""
    row: list[_Found] = []
    for each in found:
        if row and not _BETWEEN.fullmatch(text[row[-1].end : each.start]):
            yield row
            row = []
        row.append(each)
    yield row


def _mostly_capitals(text: str, companies: Companies) -> bool:
    """Say whether more than half of the words are in capitals, apart from those that may be tickers."""
    words = [word for word in _WORD.findall(text) if word not in companies]
    return 2 * sum(map(str.isupper, words)) > len(words)


def _without_suffixes(title: str) -> str:
    """Return what people call a company: `Apple` for `Apple Inc.`, `MORGAN STANLEY` as it is."""
    name = " ".join(title.replace(",", " ").split())
    while (shorter := _SUFFIX.sub("", name).strip(" ,.&")) != name and shorter:
        name = shorter
    return name


@lru_cache(maxsize=4096)
def _pattern(name: str) -> re.Pattern[str]:
    words = r"\s+".join(map(re.escape, name.split()))
    return re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)


def _stands_in(name: str, text: str) -> bool:
    """Say whether a name is in a text; one of a single word has to be written like a name: `Block`, not `block`."""
    if " " in name:
        return _pattern(name).search(text) is not None
    long = len(name) >= _SHORTEST_NAME
    return long and any(each[0][:1].isupper() and not each[0].isupper() for each in _pattern(name).finditer(text))
