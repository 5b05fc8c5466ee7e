"""A small HTTP client for scanners: it ends in time, reports failures as exceptions and shows no secret.

What comes back decides what a scanner raises:

    2xx, and what the caller accepts        Response
    403, 429, 503 with Retry-After          RetryAfter: wait this long
    408, 425, 429, 5xx, broken connections  TransientError: another attempt may help
    404, 410                                NotFound, a PermanentError: there is no such thing
    3xx, all other 4xx, an oversize body    PermanentError: another attempt cannot help
    a rejected certificate                  PermanentError
    a proxy or certificates that are wrong  ConfigError, a PermanentError that names the variable

A request has one deadline from the first byte to the last, for all addresses of the host together: the client's timeout
or the scan's remaining time, whichever is shorter. Given a `Recorder` or a `Replay` (`ScanRunner(traffic=...)`,
`resilient-scan run --record DIR` and `--replay DIR`), it keeps what comes back in a folder, without secrets, or answers
from there without any network. While a `Replay` answers, a scanner's other connections are refused (`offline`).
"""

from resilient_scan._once import ready
from resilient_scan._text import REDACTED, redact
from resilient_scan.http.client import Client, credential
from resilient_scan.http.errors import NotFound, Response, SchemaDrift, TransientError
from resilient_scan.http.recording import Recorder, Replay

__all__ = [
    "REDACTED",
    "Client",
    "NotFound",
    "Recorder",
    "Replay",
    "Response",
    "SchemaDrift",
    "TransientError",
    "credential",
    "ready",
    "redact",
]
