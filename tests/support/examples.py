"""How many examples Hypothesis tries: many where a machine waits for them (`CI=true`), a few where a person does."""

from __future__ import annotations

import os

THOROUGH = os.environ.get("CI", "").lower() == "true"
SHARE = 5


def examples(number: int) -> int:
    """Return how many of `number` examples to try here: all of them if `CI=true`, else a fifth."""
    return number if THOROUGH else max(1, number // SHARE)
