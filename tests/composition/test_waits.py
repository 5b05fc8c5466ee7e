"""Several threads of one scan may wait for different things at once."""

from __future__ import annotations

import threading
from typing import Any

from resilient_scan import Policy, ScanContext, ScanRunner, Status, Timeout, scanner


def test_threads_of_one_scan_wait_for_shared_values_without_missing_each_others_wake_ups() -> None:
    gates = {key: threading.Event() for key in range(8)}
    began = threading.Barrier(9, timeout=10)

    @scanner(pipeline="test", cache=None)
    def fan(_state: dict[str, Any], context: ScanContext) -> list[Any]:
        def ask(number: int) -> int:
            began.wait()
            return context.shared(number % 4, lambda: _slow(number % 4), ttl=60)

        def _slow(key: int) -> int:
            gates[key].wait(10)
            return key

        assert context.map(ask, range(8), concurrency=8) == [number % 4 for number in range(8)]
        return []

    def open_the_gates() -> None:
        began.wait()
        for gate in gates.values():
            gate.set()

    opener = threading.Thread(target=open_the_gates, daemon=True)
    opener.start()
    with ScanRunner([fan], policy=Policy(retry=None, timeout=Timeout(total=20)), listeners=()) as runner:
        result = runner.run().results["fan"]
    opener.join()
    assert (result.status, result.error) == (Status.COMPLETED, None)
    assert result.duration < 10
