"""Find the tickers of real companies in texts."""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from typing import Final

_WORDS: Final = """
A ABLE ACT ADD AFAIK AGE AGO AH AI AIM AIR ALL ALOT ALSO AM AMA AN AND ANY APE APES API APP APPS APR AR ARE ART AS
ASK AT ATH ATM AUG AWAY BABY BACK BAD BAG BALL BAN BAND BANK BANKS BAR BARK BASE BE BEAR BEAT BEEN BELL BEST BET BIG
BIO BIT BLUE BOND BOOM BOOT BOSS BOTH BOX BRO BTW BUG BULL BURN BUS BUT BUY BY CAGR CALL CALM CAN CAP CAR CARE CARS
CASE CASH CBD CC CDC CEO CFO CHAT CHEF CHIP CIA CITY CLUB COLD COM COO COOL CORE COST COVID CPA CPI CPU CRAB CSP CTO
CUT CUTE DAD DATE DAY DAYS DC DCF DD DEAL DEC DEEP DID DIP DIV DNA DO DOC DOG DOJ DOW DOWN DTE DUDE DUE DUMB DUMP
EACH EARN EAST EASY EAT EBIT EDGE EDIT EDT EDU EGG ELI ELSE EM END EOD EOW EOY EPS ER ESG EST ET ETA ETC ETF ETFS EU
EV EVE EVER EVO EVS EYE EYES FACT FAQ FAR FAST FAT FBI FD FDA FEB FED FEEL FEW FIND FINE FIRE FIT FIVE FIX FLAT FLOW
FLY FOMO FOR FORM FOUR FREE FRI FROG FROM FTW FUD FUEL FULL FUN FUND FYI GAIN GAME GAP GAS GDP GEM GENE GET GIFT
GIVE GLAD GMT GO GOAT GOD GOLD GOLF GOOD GOT GPU GREAT GREEN GRID GROW GUT GUY HA HALF HALO HAND HAPPY HARD HAS HAT
HATE HAVE HE HEAR HEAT HELP HER HERE HERO HES HI HIGH HIM HIPS HIS HIT HODL HOLD HOLY HOME HOPE HOT HOUR HOW HR HUGE
HUT ICE IDEA IF II III IIRC IMO IN INFO INTO IPO IQ IRA IRS IS IT ITM ITS IV JAN JOB JOY JUL JULY JUMP JUN JUNE JUST
KEEP KEY KIDS KIND KING KNOW LAB LAKE LAND LAST LATE LAW LEAD LEAP LEAPS LED LEFT LESS LET LFG LIFE LIKE LINE LINK
LION LIVE LLC LMAO LMK LOAN LOCK LOL LONG LOOK LOSS LOST LOT LOVE LOW LT LTD LUCK LUNG MACD MAD MAIN MAKE MAN MANY
MAP MAR MARK MASS MAT MATH MAX MAY MCAP ME MEET MEME MIN MIND MINE MINT MOM MOMO MON MOON MORE MOST MOVE MUCH MUST
MY NASA NATO NAV NEAR NEED NET NEW NEWS NEXT NFT NICE NO NORM NOT NOV NOW NSFW NUT NYC NYSE OC OCT OF OFF OG OH OIL
OK OLD OMG ON ONCE ONE ONLY OP OPEN OPEX OR OTC OTM OUR OUT OVER OWN PACK PAID PAIN PARK PART PASS PAST PATH PAY PC
PDT PE PEAK PEG PEN PER PERK PET PICK PIN PLAN PLAY PLUS PLZ PM POST POW PR PRE PRO PS PSA PST PT PUMP PURE PUT PUTS
QE QT RACE RAIN RAM RARE RATE RAW READ REAL RED REIT REST RH RICH RIDE RIP RISE RISK ROAD ROCK ROFL ROI ROLL ROOT
ROTH RSI RUN RUSH SAFE SALE SAND SAVE SAY SCAM SEA SEC SEE SELF SELL SEP SEPT SET SEX SHE SHOP SHOT SHOW SI SIDE
SIGN SITE SIX SKY SLOW SMA SMH SO SOME SON SOON SPAC SPOT SSD ST STAY STEP STOP STR SUM SUN SURE TA TALK TAX TBH
TEAM TECH TELL TEN TERM TEXT THAN THAT THE THEM THEN THEY THING THIS THO TIL TILL TIME TINY TIP TIPS TL TLDR TO TON
TOO TOP TOS TOUR TOWN TREE TRIP TRUE TRY TUE TURN TV TWO UFO UI UK UN UP US USA USB USD USE UTC VERY VIA VIEW VOTE
VR VS VWAP WAGE WAIT WALL WANT WAR WAS WASH WAVE WAY WE WEB WED WEED WELL WENT WERE WEST WHAT WHEN WHO WHY WIFE WILD
WILL WIN WISE WISH WITH WOLF WOOD WORD WORK WOW WSB WTF YALL YEAH YEAR YEN YES YET YO YOLO YOU YOUR YTD ZERO
"""
WORDS: Final = frozenset(_WORDS.split())
"""Words, abbreviations and months that are tickers as well, or may become some; they need the sign: `$ALL`."""

_LINK = re.compile(r"https?://\S+|www\.\S+")
_TOKEN = re.compile(r"(?<![\w$&.'’])(\$?)([A-Za-z]{1,6})(?:[.\-/]([A-Za-z]{1,2}))?(?![\w$&])")


def mentions(text: str, universe: AbstractSet[str]) -> list[str]:
    """Return the tickers in a text, in order and with repetitions.

    With the sign, a ticker counts in upper and lower case (`$gme`). Without it, a ticker counts only in capitals, with
    at least two letters, and if it is not a word (`WORDS`). `BRK.B`, `BRK-B` and `BRK/B` are the same ticker. Links are
    ignored.

    Args:
        text: what somebody wrote.
        universe: all tickers that exist, such as `BRK.B`.
    """
    found = []
    for sign, root, branch in _TOKEN.findall(_LINK.sub(" ", text)):
        ticker = _known(root.upper(), branch.upper(), universe)
        if ticker and (sign or (_capitals(root, branch if "." in ticker else "") and _plain(ticker))):
            found.append(ticker)
    return found


def _known(root: str, branch: str, universe: AbstractSet[str]) -> str:
    """Return the ticker that is meant, or an empty text; in `AAPL.A`, the `A` may begin the next sentence."""
    whole = f"{root}.{branch}"
    if branch and whole in universe:
        return whole
    return root if root in universe else ""


def _capitals(root: str, branch: str) -> bool:
    return root.isupper() and (not branch or branch.isupper())


def _plain(ticker: str) -> bool:
    return len(ticker) > 1 and ticker not in WORDS
