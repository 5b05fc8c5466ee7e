"""Processes: an attempt runs in a warm child process, which is killed when the time is up.

    the driver                                        the fork server (one a runner)        a child
    keeper.py     keeper thread - starters.py ------> forkserver.py ---- fork -----------> birth.py, then serve
    children.py   worker thread ------ the child's connection -------------------------------> an attempt

A thread can only be abandoned. A process can be ended, whatever it is doing: a regular expression that holds the
interpreter's lock, a C library that hangs or crashes, memory that grows without end.
"""
