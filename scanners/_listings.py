"""What a symbol says of a listing: a common share, or one of the things that move for other reasons.

Sources of movers send symbols without names. Warrants, rights and units are told by how exchanges write them: on
Nasdaq a fifth letter (W, R, U; Z for what has no letter of its own), elsewhere a mark behind the root (`OPFI+`,
`CELG^`, `ABC.WS`, `ABC-U`, `ABC=`). Leveraged and inverse funds are not told by anything, so they are listed; the list
ages, and a setting adds to it.
"""

from __future__ import annotations

import re
from typing import Final

_COMMON: Final = re.compile(r"[A-Z]{1,5}(?:[.-][ABCK])?")
_OTHER: Final = re.compile(r"[A-Z]{4}[WRUZ]")
_CLASS: Final = re.compile(r"([A-Z]+)-([ABCK])")

LARGEST: Final = ("AAPL", "AMZN", "AVGO", "GOOGL", "JPM", "LLY", "META", "MSFT", "NVDA", "TSLA")

LEVERAGED: Final = frozenset(
    """
    AAPB AAPD AAPU AGQ AMDD AMDG AMDL AMDS AMUU AMZD AMZU AMZZ ARMG ARMU ASTX AVGG AVGX AVL AVS BABU BABX BERZ BIB BIS
    BITI BITU BITX BMNG BMNU BMNZ BNKD BNKU BOIL BRKD BRKU BRZU BTCL BTCZ BULZ BZQ CHAU CLDL CONI CONL CRCA CRCG
    CRWG CRWL CSEX CURE CWEB CWVX DDM DFEN DGP DGZ DIG DLLL DOG DPST DRIP DRN DRV DRR DUG DULL DUSL DUST DXD DZZ EDC EDZ
    EET EEV EFO EFU EFZ ELIL ELIS EPV ERX ERY ETHD ETHT ETHU ETU EUM EUO EURL EWV EZJ FAS FAZ FBL FNGA FNGB
    FNGD FNGO FNGU FXP GDXD GDXU GGLL GGLS GLL GUSH HDLB HIBL HIBS HIMZ HOOG HOOX INDL INTW IONL IONX IONZ
    IRE IWDL IWFL IWML JDST JETD JETU JNUG KOLD KORU KTUP LABD LABU LCUL LLYX LLYZ LMTL LMTS LTL MEXX METD METU MIDU
    MQQQ MRAL MSFD MSFL MSFU MSFX MSOX MST MSTU MSTX MSTZ MTUL MUD MULL MUU MVRL MVV MYY MZZ NAIL NBIL NFXL NFXS NRGD
    NRGU NUGT NVD NVDD NVDG NVDL NVDQ NVDS NVDU NVDX NVOX OILD OILU OKLL OKLS OOQB ORCU ORCX PALU PDDL PFFL
    PILL PLTA PLTD PLTG PLTU PLTZ PSQ PST PTIR QBTX QBTZ QID QLD QPUX QQDN QQQD QQUP QQXL QUBX RBLU RCAX RDTL
    RETL REW RGTU RGTX RGTZ RIOX ROBN ROM RWM RXD RXL SAA SARK SBB SBIT SCC SCO SDD SDOW SDP SDS SEF SH SHNY SIJ SJB
    SKF SKYU SMCL SMCX SMCZ SMDD SMN SMST SMU SMUP SNOU SNXX SOFX SOLT SOUX SOXL SOXS SPDN SPUU SPXL SPXS SPXU SPYQ SPYU
    SRS SRTY SSG SSO SVIX SVXY SZK TARK TBF TBT TBX TECL TECS TMF TMV TNA TPOR TQQQ TSDD TSLG TSLI TSLL TSLO TSLQ TSLR
    TSLS TSLT TSLZ TSMG TSMU TSMX TSMZ TSYX TTT TTXD TTXU TWM TYD TYO TZA UBOT UBR UBT UCC UCO UCYB UDOW UGE UGL UJB ULE
    UMDD UNHG UPRO UPSX UPV UPW URE URTY USD USML UST UTSL UVIX UVXY UWM UXI UYG UYM VRTL VIXY VXX WANT WEBL WEBS
    WTID WTIU XDJL XPP XRPT XTJL XXRP YANG YCL YCS YINN ZSL
    """.split()  # noqa: SIM905 - one word a fund
)


def is_common_share(symbol: str) -> bool:
    """Say whether a symbol looks like a common share's, and is no leveraged or inverse fund that is known here."""
    return bool(_COMMON.fullmatch(symbol)) and not _OTHER.fullmatch(symbol) and symbol not in LEVERAGED


def with_point(symbol: str) -> str:
    """Return a symbol with its share class behind a point, as candidates have it: `BRK.B` for `BRK-B`."""
    return _CLASS.sub(r"\1.\2", symbol) if _CLASS.fullmatch(symbol) else symbol
