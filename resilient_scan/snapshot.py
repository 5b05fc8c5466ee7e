"""A run's state, taken once: copies of it for the scans, keys of it for the cache."""

from __future__ import annotations

import copy
import enum
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

TOOL_LOGS = "tool_logs"
_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})
_encode = msgspec.msgpack.Encoder(order="deterministic").encode


class Snapshot:
    """The state as it was when the run began, safe from changes by the caller and by any scanner.

    Raises:
        TypeError: the state is not a mapping, or cannot be copied.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a dict, got {type(state).__name__}")
        self.copy: Callable[[], dict[str, Any]] = _copier(dict(state))
        logs = state.get(TOOL_LOGS)
        self._known_logs = self.copy()[TOOL_LOGS] if isinstance(logs, list) and logs else []
        self.keys = Keys(self.copy)

    def new_tool_logs(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the entries that a scanner added to the `tool_logs` of its own copy."""
        logs = state.get(TOOL_LOGS)
        if not isinstance(logs, list):
            return []
        known = self._known_logs
        if logs[: len(known)] == known:
            return logs[len(known) :]
        return [entry for entry in logs if entry not in known]  # rearranged, or a new list


class Keys(dict[tuple[str, ...] | None, bytes | None]):
    """Bytes that stand for the values of some inputs, by the inputs' names; made when they are first needed.

    The name `None` stands for all inputs except `tool_logs`. The bytes are `None` if a value has no stable form (an
    object that is neither plain data nor a dataclass or struct).
    """

    def __init__(self, copy: Callable[[], dict[str, Any]]) -> None:
        super().__init__()
        self._copy = copy

    def __missing__(self, inputs: tuple[str, ...] | None) -> bytes | None:
        """Make the key, once."""
        state = self._copy()  # not the caller's own state, which may have changed since the run began
        names = (name for name in state if name != TOOL_LOGS) if inputs is None else inputs
        key = self[inputs] = stable_key({name: state[name] for name in names if name in state})
        return key


class Ephemeral(str):
    """A setting that differs from process to process, such as the URL of a server with a random port."""

    __slots__ = ()


def stable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with one word for every ephemeral value, so that all processes make the same cache key."""
    return {name: "ephemeral" if type(value) is Ephemeral else value for name, value in settings.items()}


def _copier(state: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Return a function that makes copies of the state as it is now; the caller must not keep it.

    If no value can be mutated, a shallow copy is enough. Otherwise decoding a pickle is several times faster than
    `deepcopy` and gives the same plain data; these bytes never leave the process. A state that cannot be pickled (it
    contains a lambda, say) is copied with `deepcopy`, which accepts more types.
    """
    if all(type(key) in _PLAIN and type(value) in _PLAIN for key, value in state.items()):
        return state.copy
    try:
        data = pickle.dumps(state, pickle.HIGHEST_PROTOCOL)
        pickle.loads(data)  # noqa: S301 - made one line above
        return lambda: pickle.loads(data)  # noqa: S301
    except Exception:  # foreign objects may raise anything
        return _deep_copier(state)


def _deep_copier(state: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    try:
        master = copy.deepcopy(state)
    except Exception as error:
        raise TypeError(f"state cannot be copied: {error}; leave that value out, or pass its name instead") from error
    return lambda: copy.deepcopy(master)


def stable_key(values: dict[str, Any]) -> bytes | None:
    """Return bytes that stand for the values in every process, or `None` if one of them has no stable form."""
    try:
        return _encode(_tagged(values))
    except Exception:  # not only TypeError: foreign objects, keys that cannot be ordered
        return None


def _tagged(value: Any) -> Any:
    """Mark each value that is not plain with its type, so that a date and its text have different keys."""
    kind = type(value)
    if kind in _PLAIN:
        return value if kind is not int or -(2**63) <= value < 2**64 else msgspec.msgpack.Ext(2, hex(value).encode())
    if kind is list:
        return [_tagged(item) for item in value]
    if kind is dict:
        if all(type(key) is str for key in value):
            return {key: _tagged(item) for key, item in value.items()}
        return msgspec.msgpack.Ext(3, _encode(sorted(_encode([_tagged(key), _tagged(value[key])]) for key in value)))
    return msgspec.msgpack.Ext(1, _encode((f"{kind.__module__}.{kind.__qualname__}", _content(value))))


def _content(value: Any) -> Any:
    """Return what identifies a value that is not plain: for an object all of its attributes.

    Raises:
        TypeError: the value has no stable form.
    """
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, tuple):
        return [_tagged(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(_encode(_tagged(item)) for item in value)
    fields = getattr(value, "__struct_fields__", None) or getattr(value, "__dataclass_fields__", None)
    if fields is not None:
        names = dict.fromkeys([*fields, *getattr(value, "__dict__", {})])
        return {name: _tagged(getattr(value, name)) for name in names}
    if getattr(value, "__dict__", None):
        raise TypeError(f"{type(value).__name__} has attributes of its own")
    return value  # a date, a Decimal, a UUID...: the encoder accepts or refuses them


EMPTY = Snapshot({})
