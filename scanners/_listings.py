"""Tell common shares from other listings by their symbols.

Sources of movers send symbols without names. Warrants, rights and units can be recognised by how exchanges write them:
on Nasdaq a fifth letter (W, R, U; Z for anything else), elsewhere a mark after the root (`OPFI+`, `CELG^`, `ABC.WS`,
`ABC-U`, `ABC=`). Leveraged and inverse funds cannot be recognised, so they are listed here. The list ages; a setting
adds to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_COMMON: Final = re.compile(r"[A-Z]{1,5}(?:[.-][ABCK])?")
_OTHER: Final = re.compile(r"[A-Z]{4}[WRUZ]")
_CLASS: Final = re.compile(r"([A-Z]+)-([ABCK])")

_TOLERANCE: Final = 0.15  # how far from twice: because of fees and the last minutes of trading

LARGEST: Final = ("AAPL", "AMZN", "AVGO", "GOOGL", "JPM", "LLY", "META", "MSFT", "NVDA", "TSLA")

LEVERAGED: Final = frozenset(
    """
    AALG AAPB AAPD AAPU AAPX ABNG ADBG ADBU AFRU AGQ AIBD AIBU ALBG AMDD AMDG AMDL AMDS AMUU AMZD AMZU AMZZ ANEL
    APLZ APPX ARCX ARMG ARMU ASMG ASMU ASTX AURU AVGG AVGX AVL AVS AVXX AXPG AXUP BABU BABX BAD BAIG BDCX BEG BEGS
    BERZ BIB BIDG BIS BITI BITU BITX BKNU BLSG BLSX BMNG BMNU BMNZ BNKD BNKU BOED BOEG BOEU BOIL BRKD BRKU BRZU BTCL
    BTCZ BTFX BU BULG BULU BULX BULZ BZQ CARD CARU CCUP CEFD CEGX CHAU CIFG CIFU CLDL CLSX CMGG COIG COIO CONI CONL
    CONX CORD COTG COZX CPXR CRCA CRCD CRCG CRDU CRMG CRMU CRMX CRWG CRWL CRWU CSCL CSCS CSEX CURE CWEB CWVX DAMD
    DASX DDM DFEN DGP DGZ DIG DJTU DKUP DLLL DNNG DOG DOGD DPK DPST DRIP DRN DRR DRV DUG DULL DUOG DUSL DUST DXD DZZ
    EDC EDZ EET EEV EFO EFU EFZ ELIL ELIS ENPX EPV ERX ERY ETHD ETHI ETHT ETHU ETQ ETRL ETU EUM EUO EURL EWV EZJ FAS
    FAZ FBL FCXG FDRX FIGG FNGA FNGB FNGD FNGG FNGO FNGU FRDD FRDU FUTG FXP GASL GDXD GDXU GEMG GEVG GEVX GGLL GGLS
    GLGG GLL GLWG GLXU GMEU GOOX GRAG GUSH HDLB HIBL HIBS HIMY HIMZ HODU HOOG HOOI HOOX HUTG INDL INTW IONL IONX
    IONZ IRE IREG IREX IREZ ISUL IWDL IWFL IWML JDST JETD JETU JNUG JOBX KBAB KBDU KJD KLAG KLNE KMLI KOLD KORU KPDD
    KTUP LABD LABU LABX LACG LCDL LCIZ LCUL LINT LLYX LLYZ LMTL LMTS LRCU LTL LULG LUNL LYFX MAGX METD METU MEXX
    MIDU MIDZ MLPR MQQQ MRAL MRNX MRVU MSDD MSFD MSFL MSFU MSFX MSOO MSOX MST MSTP MSTU MSTX MSTZ MTUL MUD MULL MUU
    MVLL MVRL MVV MYY MZZ NAIL NBIG NBIL NBIZ NEBX NEMG NFLU NFXL NFXS NIOG NKEL NKEQ NNEX NOWL NRGD NRGU NUG NUGT
    NVD NVDD NVDG NVDL NVDO NVDQ NVDS NVDU NVDX NVOX NVTX NWMX OILD OILU OKLL OKLS OKTG OKTX ONDG ONDL ONDU OOQB
    OOTO OPEG OPEX ORCS ORCU ORCX ORLG OSCG OSCX PALD PALU PANG PATX PBRG PDDL PFEL PFES PFFL PILL PLOO PLTA PLTD
    PLTG PLTU PLTZ PLUL POEL PSQ PST PTIR PXIU PYPG PYPS PYPT PYPU QBTX QBTZ QCMD QCML QCMU QID QLD QPUX QQDN QQQD
    QQQP QQQU QQUP QQXL QSU QSX QUBX QULL QXAS RBLU RCAX RDTL RDTU REK RETL REW RGTU RGTX RGTZ RIOX RKLX RKLZ RKTL
    ROBN ROM RTXG RUSS RVNL RWM RXD RXL SAA SARK SATG SBB SBIT SBTU SBU SCC SCDL SCO SDD SDOW SDP SDS SEF SETH SH
    SHNY SHOU SHPD SHPU SIJ SJB SKF SKRE SKYU SLON SMCL SMCX SMCZ SMDD SMHB SMN SMQ SMST SMU SMUP SNAG SNOU SNPX
    SNXX SOFA SOFX SOLT SOLX SOUU SOUX SOXL SOXS SPDN SPKX SPKY SPOG SPUU SPXL SPXS SPXU SPYQ SPYU SQQQ SRPU SRS
    SRTY SSG SSO STSM SVIX SVXY SZK TARK TBF TBT TBX TBXU TECL TECS TEMT TERG TEXU TIPD TMF TMV TNA TPOR TQQQ TSDD
    TSL TSLG TSLI TSLL TSLO TSLQ TSLR TSLS TSLT TSLZ TSMG TSMU TSMX TSMZ TSXD TSXU TSYX TTDU TTT TTXD TTXU TWM TXNU
    TYD TYO TZA UBOT UBR UBRL UBT UCC UCO UCYB UDN UDOW UECG UGE UGL UJB ULE UMDD UNHG UNHU UNX UPRO UPSG UPSX UPV
    UPW URAA URE URTY USAX USD USGG USML UST UTSL UUUG UVIX UVXY UWM UXI UXRP UYG UYM VALG VIXY VOYX VRTL VSTL VXX
    WANT WEBL WEBS WHTX WTID WTIU WULX XDJL XOMX XOMZ XPEG XPM XPP XRPK XRPT XTJL XXRP XYZG YANG YCL YCS YINN YXI
    ZETX ZSL ZYN
    """.split()  # noqa: SIM905 - one word for each fund
)


def is_common_share(symbol: str) -> bool:
    """Say whether a symbol looks like a common share and is not a known leveraged or inverse fund."""
    return bool(_COMMON.fullmatch(symbol)) and not _OTHER.fullmatch(symbol) and symbol not in LEVERAGED


def with_point(symbol: str) -> str:
    """Return a symbol with its share class after a point, as in candidates: `BRK.B` for `BRK-B`."""
    return _CLASS.sub(r"\1.\2", symbol) if _CLASS.fullmatch(symbol) else symbol


def shadows(changes: Mapping[str, float]) -> set[str]:
    """Return the symbols that move like leveraged funds of other symbols, even if they are not listed in `LEVERAGED`.

    Such a fund is named after its stock and moves twice as far, in the same direction or the opposite one: `POEL` fell
    by 44.3 % when `POET` fell by 22.4 %.

    Args:
        changes: the day's change in percent, by symbol.
    """
    return {
        fund
        for fund, change in changes.items()
        for stock, base in changes.items()
        if fund != stock and fund[:3] == stock[:3] and base and abs(abs(change / base) - 2) < _TOLERANCE
    }
