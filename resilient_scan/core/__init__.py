"""The path of one scan.

                     runner.run(state)
                           |
    run.py                Run         begins scans in order, ends them as outcomes come   the run's thread
                           |                                                                   ^
    scan.py              begin        gate, cache, single-flight: a result at once, or         | outbox
                           |          an execution to wait for                                 |
    execution.py       Execution      queued, begun once, ended once, by one of seven parties -+
                           |
    pool.py            ThreadPool     a worker runs it; the watchdog hands over on time   workers, one watchdog
                           |
    stack.py           Stack.call     retry ( breaker ( limit ( timeout.attempt ( call ))))    a worker
    first.py                          the same in one function, for a first attempt that succeeds
                           |
    engines/             attempt      one call of the scanner

    ending.py     Ending    an execution, as those see it who end it
    overdue.py    Overdue   an execution whose time is up, or whose loop is given up
    copies.py     AnswerCopy  a large answer of the cache, copied on a worker for one scan
    assembly.py   Fleet     the live parts of a runner: pool, gate, one stack per scanner
    shared.py     Shared    those of them that all stacks refer to
    config.py     Config    the runner's arguments, checked; read where they are used
    outcome.py    Outcome   what passes between an execution and the scans that wait for it
    flights.py    Flight    what is remembered of the last scans
    registration.py         how a scanner is described to listeners
    map_run.py    MapRun    a run of one scanner over many inputs
    runs.py       Runs      all the runs of a runner, and how they end when it is closed
    task.py       Task      what the pool works on, and its workers
    hangs.py      Hangs     threads whose task's time is up, until they are back or reported as abandoned
    calls.py      BlockingCalls   the blocking calls of coroutines, on a second pool
    sources.py    Sources   the sources that one scanner tries in turn

Threads meet in three places. A run's *outbox* takes what other threads have to say to the run's thread. An execution's
`stack.lock` decides who ends it. The pool's mutex guards who works on what. No lock is held while scanner, listener or
store code runs.
"""
