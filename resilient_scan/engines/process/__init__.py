"""Processes: an attempt runs in a warm child process, which is killed when the time is up.

    the driver                                        the fork server (one a runner)        a child
    keeper.py     keeper thread - starters.py ------> forkserver.py ---- fork -----------> bootstrap.py, then child.py
    children.py   worker thread ------ the child's connection
    engine.py     ... and what is said there: conversation.py, wire.py --------------------> an attempt

A thread can only be abandoned. A process can be ended, whatever it is doing: a regular expression that holds the
interpreter's lock, a C library that hangs or crashes, memory that grows without end.

    worker                                            child
    takes a warm child
    sends the scanner, once    -- Define -------->    imports or unpickles it: `transfer.py`
                               <----------- Ready --
    sends the attempt          -- Attempt ------->    calls the scanner
    keeps what comes           <- Item, Logged, Doubted --   as it is yielded and logged
    answers questions          <-------- Question --  `shared`, `guarded`, `recall`, ...
    (each on a thread)         -- Call ---------->    calls what the question is about: `load`, for example
                               <---------- Called --
                               -- Answer -------->
    returns or raises          <----------- Ended --

Above the engine nothing changes: cache, retry, breakers, limits and events are the driver's.
"""
