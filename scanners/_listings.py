"""What a symbol says of a listing: a common share, or one of the things that move for other reasons.

Sources of movers send symbols without names. Warrants, rights and units are told by how exchanges write them: on
Nasdaq a fifth letter (W, R, U; Z for what has no letter of its own), elsewhere a mark behind the root (`OPFI+`,
`CELG^`, `ABC.WS`, `ABC-U`, `ABC=`). Leveraged and inverse funds are not told by anything, so they are listed; the list
ages, and a setting adds to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_COMMON: Final = re.compile(r"[A-Z]{1,5}(?:[.-][ABCK])?")
_OTHER: Final = re.compile(r"[A-Z]{4}[WRUZ]")
_CLASS: Final = re.compile(r"([A-Z]+)-([ABCK])")

_LOOSE: Final = 0.15  # how far from twice: fees, and the last minutes of trading

LARGEST: Final = ("AAPL", "AMZN", "AVGO", "GOOGL", "JPM", "LLY", "META", "MSFT", "NVDA", "TSLA")

LEVERAGED: Final = frozenset(
    """
    AAPB AAPD AAPU ADBG AGQ AMDD AMDG AMDL AMDS AMUU AMZD AMZU AMZZ APPX ARMG ARMU ASMG ASTX AURU AVGG AVGX AVL AVS BABU
    BABX BAIG BERZ BIB BIS BITI BITU BITX BMNG BMNU BMNZ BNKD BNKU BOEG BOIL BRKD BRKU BRZU BTCL BTCZ BULG BULZ BZQ CEGX
    CHAU CIFG CIFU CLDL COIG CONI CONL CRCA CRCG CRWG CRWL CSEX CURE CWEB CWVX DDM DFEN DGP DGZ DIG DJTU DKUP DLLL DOG
    DPST DRIP DRN DRR DRV DUG DULL DUSL DUST DXD DZZ EDC EDZ EET EEV EFO EFU EFZ ELIL ELIS EPV ERX ERY ETHD ETHT ETHU
    ETU EUM EUO EURL EWV EZJ FAS FAZ FBL FIGG FNGA FNGB FNGD FNGO FNGU FXP GDXD GDXU GEMG GGLL GGLS GLGG GLL GLXU GRAG
    GUSH HDLB HIBL HIBS HIMZ HOOG HOOX INDL INTW IONL IONX IONZ IRE IREG IREX IWDL IWFL IWML JDST JETD JETU JNUG JOBX
    KOLD KORU KTUP LABD LABU LABX LCDL LCUL LLYX LLYZ LMTL LMTS LTL METD METU MEXX MIDU MQQQ MRAL MSFD MSFL MSFU MSFX
    MSOX MST MSTU MSTX MSTZ MTUL MUD MULL MUU MVLL MVRL MVV MYY MZZ NAIL NBIL NEBX NFXL NFXS NIOG NNEX NOWL NRGD NRGU
    NUGT NVD NVDD NVDG NVDL NVDQ NVDS NVDU NVDX NVOX NVTX OILD OILU OKLL OKLS OOQB OPEG OPEX ORCU ORCX OSCX PALU PANG
    PDDL PFFL PILL PLTA PLTD PLTG PLTU PLTZ POEL PSQ PST PTIR PYPG QBTX QBTZ QCML QID QLD QPUX QQDN QQQD QQUP QQXL QUBX
    RBLU RCAX RDTL RDTU RETL REW RGTU RGTX RGTZ RIOX RKLX RKLZ ROBN ROM RTXG RWM RXD RXL SAA SARK SBB SBIT SBTU SCC SCO
    SDD SDOW SDP SDS SEF SH SHNY SIJ SJB SKF SKYU SMCL SMCX SMCZ SMDD SMN SMST SMU SMUP SNOU SNXX SOFX SOLT SOUU SOUX
    SOXL SOXS SPDN SPUU SPXL SPXS SPXU SPYQ SPYU SRS SRTY SSG SSO SVIX SVXY SZK TARK TBF TBT TBX TECL TECS TEMT TMF TMV
    TNA TPOR TQQQ TSDD TSLG TSLI TSLL TSLO TSLQ TSLR TSLS TSLT TSLZ TSMG TSMU TSMX TSMZ TSYX TTDU TTT TTXD TTXU TWM TYD
    TYO TZA UBOT UBR UBRL UBT UCC UCO UCYB UDOW UGE UGL UJB ULE UMDD UNHG UPRO UPSX UPV UPW URE URTY USD USML UST UTSL
    UVIX UVXY UWM UXI UYG UYM VIXY VRTL VXX WANT WEBL WEBS WTID WTIU WULX XDJL XPP XRPT XTJL XXRP YANG YCL YCS YINN ZSL
    """.split()  # noqa: SIM905 - one word a fund
)


def is_common_share(symbol: str) -> bool:
    """Say whether a symbol looks like a common share's, and is no leveraged or inverse fund that is known here."""
    return bool(_COMMON.fullmatch(symbol)) and not _OTHER.fullmatch(symbol) and symbol not in LEVERAGED


def with_point(symbol: str) -> str:
    """Return a symbol with its share class behind a point, as candidates have it: `BRK.B` for `BRK-B`."""
    return _CLASS.sub(r"\1.\2", symbol) if _CLASS.fullmatch(symbol) else symbol


def shadows(changes: Mapping[str, float]) -> set[str]:
    """Return the symbols that move as a leveraged fund of another one does, whether their names are known or not.

    Such a fund is called after its stock, and moves twice as far, or as far the other way: `POEL` fell by 44.3 % when
    `POET` fell by 22.4 %.

    Args:
        changes: by symbol, the day's change in percent.
    """
    return {
        fund
        for fund, change in changes.items()
        for stock, base in changes.items()
        if fund != stock and fund[:3] == stock[:3] and base and abs(abs(change / base) - 2) < _LOOSE
    }
