"""Context variables on their way to a child: they go by module and name, with their values pickled.

Ours stay behind: they belong to work in the driver. So do those that no module has by name, as decimal's, and those of
modules that the scanner has not imported. One whose value cannot be pickled stays behind too, and a warning names it,
once. OpenTelemetry keeps its context in a variable of its own. Of that, the child gets what a request to another
service would get: the headers of the trace.
"""

from __future__ import annotations

import contextvars
import importlib
import sys
from contextlib import suppress
from typing import Any, Final

from resilient_scan._log import log as _log
from resilient_scan.engines.process.transfer import Unsendable, pack, unpack

MAX_NAMES: Final = 1000
_OURS: Final = "resilient_scan"
_PROPAGATE, _OTEL = "opentelemetry.propagate", "opentelemetry.context"
_names: Final[dict[contextvars.ContextVar[Any], tuple[str, str] | None]] = {}
_refused: Final[set[contextvars.ContextVar[Any]]] = set()


def packed(scanner: str) -> bytes:
    """Return the caller's context variables, for a child that a scanner runs in; nothing if there are none to send."""
    found = {}
    for variable, value in contextvars.copy_context().items():
        name = _names[variable] if variable in _names else _name(variable)
        if name is None:
            continue
        try:
            found[name] = pack(value)
        except Unsendable as error:
            if variable not in _refused:
                _refused.add(variable)
                _log.warning("%s: the context variable %s does not reach its process: %s", scanner, name[1], error)
    headers: dict[str, str] = {}
    if _OTEL in sys.modules:  # else nobody can have begun a trace
        propagate: Any = importlib.import_module(_PROPAGATE)
        propagate.inject(headers)
    return pack((found, headers)) if found or headers else b""


def restore(data: bytes) -> None:
    """Set the variables in the caller's context; in the child."""
    if not data:
        return
    found, headers = unpack(data)
    for (module, attribute), value in found.items():
        variable = getattr(sys.modules.get(module), attribute, None)  # an import could take the attempt's time
        if variable is not None:
            with suppress(Exception):  # what reads a value is foreign code
                variable.set(unpack(value))
    if headers and _OTEL in sys.modules:
        propagate: Any = importlib.import_module(_PROPAGATE)
        sys.modules[_OTEL].attach(propagate.extract(headers))


def _name(variable: contextvars.ContextVar[Any]) -> tuple[str, str] | None:
    """Return the module and the name of a variable, `None` if there is no such name or it is ours; looked for once."""
    if len(_names) >= MAX_NAMES:  # a program that makes a variable for each request
        _names.clear()
    for module, content in list(sys.modules.items()):
        if module.partition(".")[0] in {_OURS, "__main__", "__mp_main__"}:
            continue
        for attribute, value in list(getattr(content, "__dict__", {}).items()):
            if value is variable:
                _names[variable] = module, attribute
                return module, attribute
    _names[variable] = None
    return None
