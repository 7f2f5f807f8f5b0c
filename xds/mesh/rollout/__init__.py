"""Mode changes without failed requests: expand, migrate, contract.

docs/explanation/rollouts.md explains the phases. The controller calls `RolloutDriver` (`driver.py`). To
understand the package, read the modules in this order:

What is desired, and what may be active:
    desired.py      the desired state of each port
    stages.py       a served value, and the values that proxies may still use until they have ACKed it
    plan.py         the plan: the ports and DestinationRules in transition, with their stages
    rules.py        what clients may send while DestinationRules change

From one plan to the next:
    observation.py  the reports of replicas: which generations their proxies have ACKed
    waits.py        what a transition waits for, and what it skipped after the timeout
    rollout.py      `Rollout`: the desired and the served state, and the current plan
    planner.py      `Planner`: makes the next plan from a `Rollout` and the reports

Where the facts come from:
    proxies.py      `ProxyTracker`: streams and ACKs of sidecars become the report of this replica
    driver.py       `RolloutDriver`: changes and reports become plans, and plans become the mesh to serve

Several replicas:
    reports.py      the reports of peers, and when they expire
    sync.py         `ReplicaSync`: the stored plan, and what this replica has to write
    follower.py     `Follower`: when to serve the stored plan, to make the next one, or to go on alone

Status:
    progress.py     the progress by service and DestinationRule, for status, log and metrics
"""
