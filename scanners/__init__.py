"""The scanners that ship with resilient_scan, one file each; they use its public face and `resilient_scan.http` only.

Their names are entry points of the group `resilient_scan.scanners`, as those of anybody's scanners are. This folder is
installed as the package `resilient_scan_scanners`, so that a user's own package `scanners` stays as it is.
"""
