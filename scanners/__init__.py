"""The scanners that ship with resilient_scan: one file each, on its public face and `resilient_scan.http` only.

Their names are entry points of the group `resilient_scan.scanners`, the door that anybody's scanners use.
"""

from typing import Final

__resilient_scan__: Final = True
"""Marks this package as the one that belongs to resilient_scan: `scanners` is a name that others use, too."""
