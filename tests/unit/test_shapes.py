"""What msgspec learns of a class, it learns from one thread."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, threading
from types import ModuleType
import msgspec
from resilient_scan._once import ready

CLASSES = '''
from __future__ import annotations
import msgspec
class Inner(msgspec.Struct):
    x: float
class Outer(msgspec.Struct):
    inner: Inner
    more: dict[str, Inner] | None = None
'''
sys.setswitchinterval(1e-6)
for number in range(200):
    module = ModuleType(f"classes_{number}")
    sys.modules[module.__name__] = module
    exec(CLASSES, vars(module))
    together = threading.Barrier(6)

    def read():
        together.wait()
        assert msgspec.convert({"inner": {"x": 1.0}}, ready(module.Outer)).inner.x == 1.0

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_threads_that_meet_a_class_at_once_do_not_crash() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
