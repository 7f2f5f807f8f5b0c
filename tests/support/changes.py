"""Random changes to a world, each of one or several steps that a user might make at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from tests.support.world import Cluster, Listener, World

PATHS = ("/a", "/b", "/c", "/d")


class Changes:
    """Makes one world after another; the same ones for the same random numbers."""

    def __init__(
        self, random: Random, *, apps: Sequence[int], ports: Sequence[int], roots: Sequence[str]
    ) -> None:
        self._random = random
        self._apps, self._ports, self._roots = apps, ports, roots
        self._numbers = itertools.count(1)
        self.world = World(
            listeners={f"l{port}": Listener(port, f"r{at}") for at, port in enumerate(ports)},
            roots=roots[0],
        )
        for at in range(len(ports)):
            self.world = self._with_routes(f"r{at}")

    def next(self) -> str:
        """Change the world, and say how."""
        steps: dict[Callable[[], str], int] = {
            self._move: 4,
            self._move_and_delete: 4,
            self._tune: 3,
            self._scale: 3,
            self._empty: 1,
            self._add_cluster: 1,
            self._delete_cluster: 1,
            self._drop_or_add_path: 2,
            self._tune_listener: 1,
            self._remove_or_add_listener: 1,
            self._change_routes_of_listener: 1,
            self._rotate: 1,
        }
        count = self._random.choice((1, 1, 1, 2, 2, 3))
        chosen = self._random.choices(list(steps), list(steps.values()), k=count)
        return ", ".join(step() for step in chosen)

    def _move(self) -> str:
        """Send a path to another cluster, old or new."""
        routes, path = self._some_path()
        if self._random.random() < 0.5:
            name = self._random.choice(sorted(self.world.clusters))
        else:
            name = self._new_cluster()
        self._route(routes, path, name)
        return f"{routes}{path} to {name}"

    def _move_and_delete(self) -> str:
        """Send everything that went to a cluster to a new one, and delete the old one."""
        old, new = self._random.choice(sorted(self.world.clusters)), self._new_cluster()
        for routes, paths in self.world.routes.items():
            for path in [path for path, cluster in paths.items() if cluster == old]:
                self._route(routes, path, new)
        self.world = self.world.having(**{old: None})
        return f"{new} for {old}"

    def _tune(self) -> str:
        """Change the settings of a cluster, or its type."""
        name = self._random.choice(sorted(self.world.clusters))
        change = self._random.choice(("setting", "static", "checked", "secured"))
        cluster = self.world.clusters[name]
        value = cluster.setting + 1 if change == "setting" else not getattr(cluster, change)
        self.world = self.world.having(**{name: replace(cluster, **{change: value})})
        return f"{name} {change}={value}"

    def _scale(self) -> str:
        """Give a cluster other endpoints."""
        name = self._random.choice(sorted(self.world.clusters))
        endpoints = self._some_apps()
        self.world = self.world.having(**{name: replace(self.world.clusters[name], endpoints=endpoints)})
        return f"{name} at {endpoints}"

    def _empty(self) -> str:
        """Take all endpoints from a cluster, or give it some if it has none."""
        empty = [name for name, cluster in sorted(self.world.clusters.items()) if not cluster.endpoints]
        name = self._random.choice(empty or sorted(self.world.clusters))
        endpoints = self._some_apps() if empty else ()
        self.world = self.world.having(**{name: replace(self.world.clusters[name], endpoints=endpoints)})
        return f"{name} at {endpoints}"

    def _add_cluster(self) -> str:
        return f"add {self._new_cluster()}"

    def _delete_cluster(self) -> str:
        """Delete a cluster, and the routes to it."""
        unused = sorted(
            set(self.world.clusters).difference(*(route.values() for route in self.world.routes.values()))
        )
        name = self._random.choice(unused or sorted(self.world.clusters))
        kept = {
            routes: {path: cluster for path, cluster in paths.items() if cluster != name}
            for routes, paths in self.world.routes.items()
        }
        self.world = replace(self.world, routes=kept).having(**{name: None})
        if not self.world.clusters:
            self._new_cluster()
        return f"delete {name}"

    def _drop_or_add_path(self) -> str:
        routes = self._random.choice(sorted(self.world.routes))
        missing = [path for path in PATHS if path not in self.world.routes[routes]]
        if not missing:
            path = self._random.choice(PATHS)
            paths = {**self.world.routes[routes]}
            del paths[path]
            self.world = replace(self.world, routes={**self.world.routes, routes: paths})
            return f"drop {routes}{path}"
        for path in missing:
            self._route(routes, path, self._random.choice(sorted(self.world.clusters)))
        return f"add {routes}{' '.join(missing)}"

    def _tune_listener(self) -> str:
        if not self.world.listeners:
            return self._remove_or_add_listener()
        name = self._random.choice(sorted(self.world.listeners))
        listener = self.world.listeners[name]
        self._listen(name, replace(listener, setting=listener.setting + 1))
        return f"tune {name}"

    def _remove_or_add_listener(self) -> str:
        missing = [port for port in self._ports if f"l{port}" not in self.world.listeners]
        if missing:
            port = self._random.choice(missing)
            routes = self._random.choice(sorted(self.world.routes))
            self._listen(f"l{port}", Listener(port, routes))
            return f"add l{port}"
        name = self._random.choice(sorted(self.world.listeners))
        self._listen(name, None)
        return f"remove {name}"

    def _change_routes_of_listener(self) -> str:
        """Give a listener a route configuration of another name, and delete unused ones."""
        if not self.world.listeners:
            return self._remove_or_add_listener()
        name = self._random.choice(sorted(self.world.listeners))
        routes = f"r{next(self._numbers)}x"
        self.world = self._with_routes(routes)
        self._listen(name, replace(self.world.listeners[name], routes=routes))
        used = {listener.routes for listener in self.world.listeners.values()}
        self.world = replace(
            self.world, routes={name: routes for name, routes in self.world.routes.items() if name in used}
        )
        return f"{name} by {routes}"

    def _rotate(self) -> str:
        others = [roots for roots in self._roots if roots != self.world.roots]
        self.world = replace(self.world, roots=self._random.choice(others))
        return "other roots"

    def _listen(self, name: str, listener: Listener | None) -> None:
        together = {**self.world.listeners, name: listener}
        self.world = replace(
            self.world, listeners={name: listener for name, listener in together.items() if listener}
        )

    def _route(self, routes: str, path: str, cluster: str) -> None:
        self.world = self.world.routing(routes, **{path.removeprefix("/"): cluster})

    def _with_routes(self, name: str) -> World:
        """Return the world with a route configuration that leads to clusters new and old."""
        self.world = replace(self.world, routes={**self.world.routes, name: {}})
        for path in PATHS:
            new = not self.world.clusters or self._random.random() < 0.5
            self._route(
                name, path, self._new_cluster() if new else self._random.choice(sorted(self.world.clusters))
            )
        return self.world

    def _some_path(self) -> tuple[str, str]:
        routes = self._random.choice(sorted(self.world.routes))
        return routes, self._random.choice(PATHS)

    def _new_cluster(self) -> str:
        name = f"c{next(self._numbers)}"
        kind, checked, secured = (self._random.random() for _ in range(3))
        cluster = Cluster(self._some_apps(), static=kind < 0.25, checked=checked < 0.3, secured=secured < 0.3)
        self.world = self.world.having(**{name: cluster})
        return name

    def _some_apps(self) -> tuple[int, ...]:
        return tuple(sorted(self._random.sample(self._apps, self._random.randint(1, 3))))
