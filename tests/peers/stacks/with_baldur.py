"""baldur-framework: `protected`, with its settings in the environment. It has no cache for answers."""

from __future__ import annotations

import itertools
import os
from typing import Any

from tests.peers.stacks.base import PAUSE, Call, Stack, Wanted, not_offered

_NUMBERS = itertools.count()


class Baldur(Stack):
    """Its breakers are told apart by name; each protected function has one of its own, or its provider's."""

    packages = ("baldur-framework",)

    def _protect(self, source: Call, wanted: Wanted) -> Call:
        not_offered(wanted, "ttl", "within", "counts", "doubts")
        if wanted.failures is not None:
            os.environ["BALDUR_CB_FAILURE_THRESHOLD"] = str(wanted.failures)
            os.environ["BALDUR_CB_RECOVERY_TIMEOUT"] = str(max(1, round(wanted.open_for)))
        if wanted.lasting:
            os.environ["BALDUR_REDIS_URL"] = os.environ["PEERS_REDIS"]
        import baldur
        from baldur.services.retry_handler.models import RetryPolicyConfig

        name = wanted.provider or f"source{next(_NUMBERS)}"
        options: dict[str, Any] = {"circuit_breaker": wanted.failures is not None}
        seconds = wanted.timeout or wanted.total
        if seconds is not None:
            options["timeout"] = seconds
        if wanted.attempts > 1:
            options["retry"] = RetryPolicyConfig(
                max_attempts=wanted.attempts, backoff_base=PAUSE, backoff_max=PAUSE, domain=name
            )
        return baldur.protected(name, **options)(source)


STACK = Baldur()
