"""One file for each way to protect a call: `load(name)` returns it. Only the process that measures it imports it."""

from __future__ import annotations

import importlib

from tests.peers.stacks.base import Stack

MODULES = {
    "here": "here",
    "by hand": "by_hand",
    "nopanic": "with_nopanic",
    "interlock-cb": "with_interlock",
    "pyresilience": "with_pyresilience",
    "baldur-framework": "with_baldur",
}


def load(name: str) -> Stack:
    """Return the stack of this name."""
    stack: Stack = importlib.import_module(f"tests.peers.stacks.{MODULES[name]}").STACK
    return stack
