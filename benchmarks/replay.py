"""Measure how long it takes to replay recorded traffic: python benchmarks/replay.py."""

from __future__ import annotations

import argparse
import time

from xds.mesh.model.authorization import Action, Attribute, Condition, Pattern, Rule
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import (
    TLS_MODE_LABEL,
    AuthorizationPolicy,
    Change,
    Meta,
    Pod,
    Protocol,
    Ref,
    Service,
    ServicePort,
)
from xds.mesh.observe.edges import Client, Target, TrafficMode
from xds.mesh.observe.record import Flow
from xds.mesh.observe.replay import replay

PORT = ServicePort(port=80, target=8080, name="http", protocol=Protocol.HTTP)


def main() -> None:
    """Run the measurements and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", type=int, default=1000, help="workloads, each with a service account")
    parser.add_argument("--namespaces", type=int, default=50)
    options = parser.parse_args()
    names = [(f"ns{number % options.namespaces}", f"web-{number}") for number in range(options.workloads)]
    before = Mesh([fact for name in names for fact in workload(*name)])
    mtls = TrafficMode.MTLS
    flows = [
        Flow(Target(*server, 80), Client(*client), mtls, 1, 2)
        for server in sorted(names)
        for client in sorted(names)
    ]
    print(f"{'':12} {'CPU, s':>7} {'flows':>10} {'break':>10}")
    for what, policies in {
        "one policy": [policy(names[0], "namespaces", names[1][0])],
        "all policies": [
            policy(name, "principals", f"*/sa/{names[index - 1][1]}") for index, name in enumerate(names)
        ],
    }.items():
        start = time.process_time()
        after = before.apply(Change(applied=tuple(policies)))
        found = replay(before, after, flows)
        seconds = time.process_time() - start
        broken = sum(len(change.flows) for change in found.changes)
        print(f"{what:12} {seconds:7.2f} {found.flows:10,} {broken:10,}")


def workload(namespace: str, name: str) -> tuple[Pod, Service]:
    """Return a pod with a sidecar and a service account of its own, and its Service."""
    number = int(name.rpartition("-")[2])
    labels = {"app": name, TLS_MODE_LABEL: "istio"}
    pod = Pod(
        meta=Meta(ref=Ref("Pod", namespace, name), labels=labels),
        address=f"10.1.{number >> 8}.{number & 255}",
        service_account=name,
    )
    service = Service(
        meta=Meta(ref=Ref("Service", namespace, name)),
        addresses=(f"10.96.{number >> 8}.{number & 255}",),
        ports=(PORT,),
        selector={"app": name},
    )
    return pod, service


def policy(server: tuple[str, str], field: str, value: str) -> AuthorizationPolicy:
    """Return a policy that allows one client of a workload."""
    attribute = Attribute.PRINCIPAL if field == "principals" else Attribute.NAMESPACE
    return AuthorizationPolicy(
        meta=Meta(ref=Ref("AuthorizationPolicy", *server)),
        action=Action.ALLOW,
        selector={"app": server[1]},
        rules=(Rule(conditions=(Condition(attribute, (Pattern.parse(value),)),)),),
    )


if __name__ == "__main__":
    main()
