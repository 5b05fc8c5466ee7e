"""Other machines, by Dask: an attempt runs in a child process of a worker, and all layers stay with the driver.

    driver                                             a worker
    ------                                             --------
    ProcessEngine: one attempt                         WorkerActor
      enters a RemoteChild                               has as many warm children as the worker has threads
        Dispatcher: those that wait, in batches --------> makes the attempts of a batch, one after the other
      is given what comes back <------------------------ passes on what a child says, a few times a second
                                                         kills it when the attempt's time is up

What driver and child say to each other is what they say on one machine. So this package knows nothing of scanners,
retries or results: `actor` relays messages, `remote` is what the driver has of an attempt there, `dispatch` decides
what goes where, `workers` keeps the workers, and `connect` reaches a cluster or finds out why it could not be used.

Attempts are calls of an actor and not tasks. A task costs three times as much of the driver's processor, may be moved
or computed again by the scheduler, and queues where nobody counts its time. An actor's call goes straight to its worker
and is made once or not at all.
"""
