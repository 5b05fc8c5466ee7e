"""The pictures of the documentation: `python -m tests.docs.diagrams` draws them, and a test compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.docs.pages import DOCS
from tests.docs.svg import AMBER, BLUE, GREEN, GREY, PLAIN, QUIET, RED, Picture

PICTURES: Final = DOCS / "pictures"
DRAWN: Final[dict[str, Callable[[], Picture]]] = {}


def _picture(draw: Callable[[], Picture]) -> Callable[[], Picture]:
    DRAWN[draw.__name__.replace("_", "-")] = draw
    return draw


@_picture
def layers() -> Picture:
    """Draw the layers around a scanner, each with the statuses in which a scan can end there."""
    columns = [
        ("gate", ("in service?",), "disabled"),
        ("cache", ("fresh answer?", "one call per key"), "cached"),
        ("timeout", ("total: counts from", "the worker's start"), "timeout"),
        ("retry", ("backoff, jitter,", "Retry-After"), "error"),
        ("breaker", ("every attempt", "votes"), "rejected"),
        ("limit", ("the provider's", "rate, permits"), "rejected"),
        ("timeout", ("attempt: of", "one call"), ""),
        ("scanner", ("your code",), "completed"),
    ]
    width, step, top, height = 1000, 119, 46, 232
    picture = Picture(width, 372, "A scan goes through seven layers to reach the scanner; each can end it.")
    picture.text((24, 28), "state", bold=True)
    picture.arrow((64, 24), (978, 24))
    for number, (name, lines, status) in enumerate(columns):
        x, inset = 24 + step * number, 9 * number
        frame = (width - 24 - 3 * number - x, height - 2 * inset)
        fills = (GREY, BLUE, AMBER, PLAIN, RED, PLAIN, AMBER, GREEN)
        picture.frame((x, top + inset), frame, fill=fills[number])
        picture.text((x + 10, 148), name, bold=True, size=15, room=step)
        for row, line in enumerate(lines):
            picture.text((x + 10, 170 + 17 * row), line, size=11.5, colour=QUIET, room=step - 8)
        if status:
            picture.arrow((x + 40, 208), (x + 40, 296))
            fill = {"completed": GREEN, "cached": GREEN, "disabled": GREY}.get(status, RED)
            picture.pill((x + 46, 310), status, fill=fill)
    picture.text((86, 354), "an execution failed, an older answer stands in", size=12, colour=QUIET)
    picture.pill((50, 350), "stale", fill=GREEN)
    picture.text((520, 354), "the run ended before the scanner's turn", size=12, colour=QUIET)
    picture.pill((478, 350), "skipped", fill=GREY)
    return picture


@_picture
def cache() -> Picture:
    """Draw the life of an answer, and what single-flight does."""
    picture = Picture(900, 300, "An answer is fresh for ttl, then stale; several scans of one key share one execution.")
    picture.text((24, 32), "The life of one answer", bold=True)
    picture.bar((24, 48), (400, 40), "fresh", fill=GREEN)
    picture.bar((424, 48), (280, 40), "stale", fill=AMBER)
    picture.bar((704, 48), (172, 40), "gone", fill=PLAIN, dashed=True)
    picture.text((24, 108), "ttl, shortened by up to jitter", size=12, colour=QUIET)
    picture.text((424, 108), "stale_if_error", size=12, colour=QUIET)
    picture.text((40, 128), "a scan ends cached, and no worker is used", size=12)
    picture.text((440, 128), "if the execution fails: stale", size=12)
    picture.text((720, 128), "the failure shows", size=12)
    picture.text((24, 172), "Single-flight: three scans want the same key", bold=True)
    for row, name in enumerate(("leader", "follower", "follower, short of time")):
        picture.text((24, 204 + 34 * row), name, size=12)
    picture.bar((190, 188), (420, 24), "calls the source", fill=BLUE)
    picture.pill((672, 200), "completed", fill=GREEN)
    picture.bar((260, 222), (350, 24), "waits, holds no worker", fill=GREY)
    picture.pill((672, 234), "cached", fill=GREEN)
    picture.bar((300, 256), (160, 24), "waits", fill=GREY)
    picture.pill((512, 268), "skipped", fill=GREY)
    picture.text((556, 272), "its own run reached its deadline first", size=12, colour=QUIET)
    return picture


@_picture
def timeout() -> Picture:
    """Draw what happens to a scan whose thread hangs."""
    picture = Picture(900, 282, "The result is handed over at the timeout; the thread is abandoned and replaced.")
    for row, name in enumerate(("your run", "worker 1", "watchdog", "worker 2")):
        picture.text((24, 78 + 52 * row), name, bold=True)
        picture.line((110, 74 + 52 * row), (876, 74 + 52 * row))
    picture.bar((110, 60), (100, 28), "queue wait", fill=GREY)
    picture.bar((210, 60), (310, 28), "waits for the result", fill=PLAIN)
    picture.bar((520, 60), (356, 28), "has its result: timeout", fill=GREEN)
    picture.bar((210, 112), (310, 28), "the scanner's call hangs", fill=BLUE)
    picture.bar((520, 112), (356, 28), "abandoned: listed, counted, not waited for", fill=RED, dashed=True)
    picture.bar((500, 164), (40, 28), "acts", fill=AMBER)
    picture.bar((546, 216), (330, 28), "takes the next scan", fill=BLUE)
    picture.arrow((520, 164), (520, 92))
    picture.arrow((540, 178), (560, 178), (560, 214))
    picture.line((210, 36), (210, 256), dashed=True)
    picture.line((520, 36), (520, 256), dashed=True)
    picture.text((210, 30), "the worker starts", size=12, anchor="middle", colour=QUIET)
    picture.text((520, 30), "start + timeout.total", size=12, anchor="middle", colour=QUIET)
    picture.text((530, 268), "what the scanner had yielded by then is kept as partial", size=12)
    return picture


@_picture
def retry() -> Picture:
    """Draw three attempts, the waits between them, and a wait that does not fit."""
    picture = Picture(
        900, 236, "Waits are drawn at random up to a bound that doubles; one that does not fit is not begun."
    )
    picture.text((24, 30), "attempts=3, base=0.5, cap=10, timeout.total=30", mono=True, size=12)
    picture.bar((24, 62), (150, 34), "attempt 1 fails", fill=RED)
    picture.bar((174, 62), (90, 34), "wait", fill=GREY)
    picture.bar((264, 62), (150, 34), "attempt 2 fails", fill=RED)
    picture.bar((414, 62), (150, 34), "wait", fill=GREY)
    picture.bar((564, 62), (170, 34), "attempt 3 answers", fill=GREEN)
    picture.text((174, 116), "0 to 0.5 s", size=12, colour=QUIET)
    picture.text((414, 116), "0 to 1 s: the bound doubles", size=12, colour=QUIET)
    picture.pill((790, 79), "completed", fill=GREEN)
    picture.text((24, 150), "a wait that would end after the deadline", mono=True, size=12)
    picture.bar((24, 166), (150, 34), "attempt 1 fails", fill=RED)
    picture.bar((174, 166), (420, 34), "RetryAfter(40)", fill=PLAIN, dashed=True)
    picture.line((500, 156), (500, 216), dashed=True)
    picture.text((506, 216), "timeout.total", size=12, colour=QUIET)
    picture.pill((656, 183), "error", fill=RED)
    picture.text((696, 187), "at once: no time is wasted", size=12, colour=QUIET)
    return picture


@_picture
def breaker() -> Picture:
    """Draw the three states of a breaker."""
    picture = Picture(900, 236, "Closed opens after failures; open becomes half-open; a trial decides.")
    picture.box((40, 78), (190, 76), "closed", ("attempts run freely,", "each one votes"), fill=GREEN)
    picture.box((356, 78), (190, 76), "open", ("no attempt is made:", "rejected at once"), fill=RED)
    picture.box((672, 78), (190, 76), "half-open", ("a few trials at a time", "are admitted"), fill=AMBER)
    picture.arrow((230, 104), (354, 104), label="failures in a row,\nor a rate", at=(292, 78))
    picture.arrow((546, 104), (670, 104), label="open_for has\npassed", at=(608, 78))
    picture.arrow((670, 136), (548, 136), label="a trial fails:\nopen for longer", at=(609, 156))
    picture.arrow((767, 154), (767, 212), (135, 212), (135, 156), label="the trials succeed", at=(450, 206))
    return picture


@_picture
def limit() -> Picture:
    """Draw the queue of a provider."""
    picture = Picture(
        900, 256, "Scanners of one provider share a queue; a scan waits for its permit before it takes a worker."
    )
    for row, name in enumerate(("insider_buying", "filings_8k", "your_scanner")):
        picture.box((24, 40 + 64 * row), (170, 44), name, fill=PLAIN, mono=True)
        picture.arrow((194, 62 + 64 * row), (262, 126))
    picture.box((264, 84), (190, 84), "one queue", ("first come, first served;", "no worker is held"), fill=GREY)
    picture.arrow((454, 126), (528, 126), label="a permit", at=(491, 116))
    picture.box((530, 84), (150, 84), "worker", ("makes the attempt",), fill=BLUE)
    picture.arrow((680, 126), (748, 126))
    picture.box((750, 84), (126, 84), "provider", ("sec",), fill=GREEN)
    picture.text((264, 196), "rate: 10/s (requests)   concurrency: 4 (attempts)", size=12, colour=QUIET)
    picture.arrow((359, 168), (359, 226), (420, 226))
    picture.pill((462, 226), "rejected", fill=RED)
    picture.text((506, 230), "no turn before the deadline: nobody is blamed", size=12, colour=QUIET)
    return picture


@_picture
def provider() -> Picture:
    """Draw whose failures go to a provider's breaker, and whose do not."""
    picture = Picture(900, 264, "Failures of the way go to the provider's breaker, which all of its scanners share.")
    for row, name in enumerate(("gap_up", "movers", "your_scanner")):
        picture.box((24, 40 + 64 * row), (150, 44), name, fill=PLAIN, mono=True)
        picture.arrow((174, 62 + 64 * row), (248, 126))
    picture.box((250, 84), (190, 84), "provider's breaker", ("one for all of them;", "one makes the trial"), fill=AMBER)
    picture.arrow((440, 126), (528, 126), label="the way", at=(484, 116))
    picture.box((530, 84), (140, 84), "provider", ("acme",), fill=GREEN)
    picture.arrow((670, 126), (748, 126), label="answers", at=(709, 116))
    picture.box((750, 84), (126, 84), "scanner", ("reads them",), fill=BLUE)
    picture.text((410, 196), "refused, dropped, TLS, 502 to 504:", size=12, colour=QUIET)
    picture.text((410, 212), "counts for the provider", size=12, colour=QUIET)
    picture.text((680, 196), "4xx, 500, parse errors, timeouts:", size=12, colour=QUIET)
    picture.text((680, 212), "counts for the scanner", size=12, colour=QUIET)
    picture.arrow((345, 168), (345, 236), (262, 236))
    picture.pill((216, 236), "rejected", fill=RED)
    picture.text((24, 240), "while it is down: stale, or", size=12, colour=QUIET)
    return picture


@_picture
def quarantine() -> Picture:
    """Draw the states of a scanner."""
    picture = Picture(900, 290, "Alerts quarantine a scanner; probes bring it back; orders take precedence.")
    picture.box((40, 84), (180, 76), "enabled", ("every scan runs",), fill=GREEN)
    picture.box((360, 84), (180, 76), "quarantined", ("scans end disabled",), fill=RED)
    picture.box((680, 84), (180, 76), "probing", ("one execution at a time", "tests the source"), fill=AMBER)
    picture.box((360, 206), (180, 64), "disabled", ("by hand, for 24 h",), fill=GREY)
    picture.arrow((220, 108), (358, 108), label="an alert fires, or\nafter_failures", at=(289, 82))
    picture.arrow((540, 108), (678, 108), label="the cool-off\nhas passed", at=(609, 82))
    picture.arrow((678, 140), (542, 140), label="a probe fails:\ncool-off doubles", at=(610, 160))
    picture.arrow(
        (770, 84), (770, 40), (130, 40), (130, 82), label="enough probes passed, and no alert fires", at=(450, 32)
    )
    picture.arrow((130, 160), (130, 228), (358, 228), label="runner.disable", at=(246, 220))
    picture.arrow((358, 252), (100, 252), (100, 162), label="runner.enable, or it expires", at=(236, 270))
    return picture


@_picture
def suspicion() -> Picture:
    """Draw how an answer is judged."""
    picture = Picture(900, 196, "An answer without an error is compared with what the scanner used to find.")
    picture.box((24, 62), (150, 70), "an answer", ("and no error",), fill=BLUE)
    picture.box((240, 62), (150, 70), "malformed?", ("more dropped", "than kept"), fill=PLAIN)
    picture.box((436, 62), (150, 70), "empty?", ("and it never was,", "or empty_ok=False"), fill=PLAIN)
    picture.box((632, 62), (150, 70), "tiny?", ("under a tenth of", "the smallest so far"), fill=PLAIN)
    picture.arrow((174, 97), (238, 97))
    for x in (390, 586):
        picture.arrow((x, 97), (x + 44, 97), label="no", at=(x + 22, 88))
    picture.arrow((782, 97), (826, 97), label="no", at=(804, 88))
    picture.text((832, 94), "trusted,", size=12)
    picture.text((832, 110), "cached", size=12)
    for x in (315, 511, 707):
        picture.line((x, 132), (x, 164))
    picture.arrow((707, 164), (250, 164), label="yes", at=(420, 156))
    picture.text((40, 168), "suspicious: returned, not cached", size=12)
    return picture


@_picture
def threads() -> Picture:
    """Draw which thread does what."""
    picture = Picture(900, 332, "The run's thread starts scans and collects outcomes; workers make attempts.")
    picture.box(
        (24, 110),
        (190, 96),
        "the run's thread",
        ("gate, cache;", "begins scans in order,", "sends the events"),
        fill=GREEN,
    )
    picture.box((330, 40), (180, 60), "queue", ("longest expected first",), fill=GREY)
    picture.box((330, 220), (180, 60), "outbox", ("outcomes for this run",), fill=GREY)
    for row in range(2):
        picture.box(
            (626, 34 + 78 * row),
            (170, 64),
            f"worker {row + 1}",
            ("retry ( breaker ( limit", "( attempt )))"),
            fill=BLUE,
        )
    picture.box((626, 224), (170, 64), "watchdog", ("one per pool: deadlines",), fill=AMBER)
    picture.arrow((214, 130), (270, 130), (270, 70), (328, 70))
    picture.arrow((510, 64), (624, 64))
    picture.arrow((510, 76), (566, 76), (566, 144), (624, 144))
    picture.arrow((624, 160), (570, 160), (570, 240), (512, 240), label="ended", at=(590, 200))
    picture.arrow((626, 262), (512, 262), label="on time", at=(569, 282))
    picture.arrow((328, 250), (270, 250), (270, 186), (216, 186))
    picture.arrow(
        (796, 256), (850, 256), (850, 66), (798, 66), dashed=True, label="votes, cancels,\nreplaces", at=(846, 306)
    )
    return picture


@_picture
def loops() -> Picture:
    """Draw which loop and which threads a run uses, called in the two ways."""
    picture = Picture(
        900, 290, "Your own loop only awaits arun. Scanners run on the runner's loop, or on workers, in either case."
    )
    picture.box(
        (24, 40),
        (214, 84),
        "your asyncio program",
        ("await runner.arun(state)", "its loop goes on meanwhile"),
        fill=GREEN,
    )
    picture.box((24, 180), (214, 84), "your plain program", ("runner.run(state)", "its thread waits"), fill=GREEN)
    picture.box((330, 40), (170, 84), "a thread for the run", ("begins scans,", "collects outcomes"), fill=GREY)
    picture.box((330, 180), (170, 84), "the caller's thread", ("begins scans,", "collects outcomes"), fill=GREY)
    picture.box(
        (636, 34),
        (240, 96),
        "the runner's own loop",
        ("async def scanners,", "up to max_async of them,", "all on one thread"),
        fill=BLUE,
    )
    picture.box(
        (636, 174),
        (240, 96),
        "workers",
        ("all other scanners,", "up to max_workers of them,", "each on a thread"),
        fill=AMBER,
    )
    for row in (82, 222):
        picture.arrow((238, row), (328, row))
        picture.arrow((500, row), (634, row))
    picture.line((566, 82), (566, 222))
    picture.text((131, 152), "no scanner runs on your loop", size=12, anchor="middle", colour=QUIET)
    return picture


@_picture
def alert_loop() -> Picture:
    """Draw the way from an alert to the cure."""
    picture = Picture(900, 276, "Metrics lead to an alert, the alert to a quarantine, probes to the cure.")
    picture.box((24, 60), (170, 70), "the fleet", ("runs every minute",), fill=GREEN)
    picture.box((270, 60), (150, 70), "Prometheus", ("rules over 5 min",), fill=BLUE)
    picture.box((496, 60), (150, 70), "Alertmanager", ("route, receiver",), fill=BLUE)
    picture.box((722, 60), (154, 70), "control endpoint", ("POST /alerts",), fill=AMBER)
    picture.box((722, 188), (154, 64), "quarantined", ("scans end disabled",), fill=RED)
    picture.box((380, 188), (180, 64), "probes", ("after the cool-off",), fill=AMBER)
    picture.arrow((194, 95), (268, 95), label="/metrics", at=(231, 86))
    picture.arrow((420, 95), (494, 95), label="fires", at=(457, 86))
    picture.arrow((646, 95), (720, 95), label="webhook", at=(683, 86))
    picture.arrow((799, 130), (799, 186))
    picture.arrow((722, 220), (562, 220))
    picture.arrow((378, 220), (109, 220), (109, 132), label="three pass, no alert fires: enabled", at=(246, 212))
    picture.arrow((470, 252), (470, 268), (799, 268), (799, 254), label="one fails", at=(640, 264))
    return picture


def write() -> None:
    """Draw all pictures."""
    PICTURES.mkdir(exist_ok=True)
    for name, draw in DRAWN.items():
        (PICTURES / f"{name}.svg").write_text(draw().svg())


if __name__ == "__main__":
    write()
