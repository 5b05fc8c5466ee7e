"""Links of the dashboards to what is outside Grafana: the runbook, and the service's control page.

Only who exports the dashboards knows where these are. A description that ends with "Runbook: ScannerStale" names the
heading that its panel belongs to; with the runbook's URL, the panel gets a link to it.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

Json = dict[str, Any]

HEADING: Final = re.compile(r"\bRunbook: (\w+)")
SCANNER: Final = "scanner"  # the variable, on the dashboard with exactly one of them


def with_links(text: str, public_url: str | None = None, runbook_url: str | None = None) -> str:
    """Return a dashboard's file with its links; those whose URL is not known are left out, rather than dead.

    Args:
        text: the file as it is shipped, without these links.
        public_url: where people reach the service, such as `https://scan.example.org`.
        runbook_url: where they read `docs/runbook.md`.
    """
    board: Json = json.loads(text)
    if public_url is not None:
        _link_control_page(board, public_url.rstrip("/"))
    if runbook_url is not None:
        _link_runbook(board, runbook_url)
    return json.dumps(board, sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def _link_runbook(board: Json, url: str) -> None:
    board["links"].append(_link("Runbook", url, "What each alert means, and what to do", icon="doc"))
    for panel in board["panels"]:
        if heading := HEADING.search(panel.get("description", "")):
            title, place = f"Runbook: {heading[1]}", f"{url}#{heading[1].lower()}"
            panel["links"] = [_link(title, place, "What it means, and what to do", icon="doc")]


def _link_control_page(board: Json, url: str) -> None:
    (scanner,) = (each for each in board["templating"]["list"] if each["name"] == SCANNER)
    page = f"{url}/" if scanner["multi"] else f"{url}/page/${{{SCANNER}}}"
    board["links"].append(_link("Control page", page, "Take scanners out of service, bring them back, see why"))
    overrides = (each for panel in board["panels"] for each in panel.get("fieldConfig", {}).get("overrides", ()))
    for links in (each["value"] for override in overrides for each in override["properties"] if each["id"] == "links"):
        field = {"title": "Open its control page", "url": f"{url}/page/${{__data.fields.Scanner}}", "targetBlank": True}
        links.append({**links[0], **field})


def _link(title: str, url: str, tooltip: str, *, icon: str = "external link") -> Json:
    return {
        "asDropdown": False,
        "icon": icon,
        "includeVars": False,
        "keepTime": False,
        "tags": [],
        "targetBlank": True,
        "title": title,
        "tooltip": tooltip,
        "type": "link",
        "url": url,
    }
