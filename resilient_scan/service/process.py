"""What the control endpoint knows about the process around it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """What the endpoint has to know about the process around it.

    Attributes:
        why_not: returns a sentence while scans cannot run, else an empty text; for `/readyz` and the page.
        run: has a scanner run soon, without waiting for that; `None`: only the process itself starts runs.
        alerting: returns what is wrong with the way to the alerts, else an empty text.
        dashboard_url: of a dashboard; `{scanner}` in it stands for the scanner on whose page it is. May be empty.
        runbook_url: of a page with a heading for each alert; may be empty.
    """

    why_not: Callable[[], str] = str
    run: Callable[[str], None] | None = None
    alerting: Callable[[], str] = str
    dashboard_url: str = ""
    runbook_url: str = ""
