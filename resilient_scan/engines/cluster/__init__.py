"""Other machines, by Dask: an attempt runs in a child process of a worker, and all layers stay with the driver.

    driver                                          a worker
    ------                                          --------
    ProcessEngine: one attempt                      WorkerActor
      takes a RemoteChild from  <-- ClusterWorkers    has as many warm children as the worker has threads
      sends and receives        <-- RemoteWire ----> passes messages on to a child, and returns its answers
                                                      kills it when the attempt's time is up

What driver and child say to each other is what they say on one machine. So this package knows nothing of scanners,
retries or results: `actor` relays messages, `remote` is what the driver has of a child, `workers` keeps the workers.

Attempts are calls of an actor and not tasks. A task costs three times as much of the driver's processor, may be moved
or computed again by the scheduler, and queues where nobody counts its time. An actor's call goes straight to its worker
and is made once or not at all.
"""
