"""The page in Chromium, on a running `xds serve`: every view, filter and live change."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cli.commands import xds
from tests.cli.serve_process import ServeProcess, serving
from tests.page.meshes import (
    AUTHORIZATION,
    INVALID,
    NODE_ID,
    RULE,
    STRICT,
    connected_sidecar,
    istio_task,
    many_services,
    report_connections,
    write_ca,
)

HTTPBIN = "sidecar~127.10.1.1~httpbin.full~full.svc.cluster.local"
VIEWS = ("map", "migration", "access", "rollouts", "proxies", "problems")
MORE_ROUTES = (
    "map?client=sleep.full&service=httpbin.full",
    "migration?namespace=partial",
    f"proxies/{NODE_ID}",
)
EDGE = '.edge[data-key="workload/{} service/{}"]'


class Server:
    """A control plane, and the folder that it reads."""

    def __init__(self, folder: Path, process: ServeProcess) -> None:
        self.folder = folder
        self.process = process

    def url(self, route: str = "") -> str:
        return f"http://127.0.0.1:{self.process.admin}/#/{route}"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """The Istio task, with an AuthorizationPolicy, an invalid object and one connected sidecar."""
    folder = istio_task(tmp_path_factory.mktemp("page") / "mesh")
    (folder / "invalid.yaml").write_text(INVALID)
    (folder / "authorization.yaml").write_text(AUTHORIZATION)
    with serving(folder) as process, connected_sidecar(process.xds):
        yield Server(folder, process)


@pytest.fixture
def own_server(tmp_path) -> Iterator[Server]:
    """The Istio task, for a test that changes it."""
    folder = istio_task(tmp_path / "mesh")
    with serving(folder) as process:
        yield Server(folder, process)


_loads = itertools.count(1)


def open_view(page, server: Server, route: str) -> None:
    # The query makes the browser load the page again, and in the same process: another fragment does not.
    page.goto(server.url(route).replace("/#/", f"/?{next(_loads)}#/"))
    page.wait_for_selector("main:not([aria-busy])", state="attached")
    page.wait_for_selector("#connection.live")


def edges(page, result: str) -> set[str]:
    return {edge.get_attribute("data-key") for edge in page.query_selector_all(f".edge.{result}[role]")}


# --- map ----------------------------------------------------------------------------------------------------


def test_map_shows_what_connections_use(page, server):
    open_view(page, server, "map")
    assert "workload/full/sleep service/full/httpbin" in edges(page, "mtls")
    assert "workload/legacy/sleep service/full/httpbin" in edges(page, "plaintext")
    label = page.get_attribute(EDGE.format("full/sleep", "partial/httpbin"), "aria-label")
    assert label == (
        "sleep.full to httpbin.partial: partly mutual TLS, 1 of 2 endpoints (server has no sidecar)"
    )
    assert "1 of 2" in page.text_content(".label.mixed text")
    assert page.get_attribute(f"{EDGE.format('full/sleep', 'full/httpbin')}", "class") == (
        "edge mtls predicted"
    )
    assert "No observed traffic" in page.text_content(".summary")


def test_click_or_enter_explains_a_connection(page, server):
    open_view(page, server, "map")
    page.click('.label[data-edge="workload/full/sleep service/full/httpbin"]')
    page.wait_for_selector("#panel .group")
    text = page.text_content("#panel")
    assert "sleep.full → httpbin.full" in text
    assert text.count("auto mTLS is enabled") == 1, "the reason is not repeated"
    assert "Decided byMeshPolicy default" in text
    assert "Client sleep.full: … CDS waiting" in text
    assert "Nothing was reported" in text
    page.keyboard.press("Escape")
    page.wait_for_selector("#panel", state="hidden")
    page.focus('[data-key="workload/legacy/sleep"]')
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel .group")
    assert "sleep.legacy →" in page.text_content("#panel h2")
    route = page.evaluate("location.hash")
    open_view(page, server, route.removeprefix("#/"))
    page.wait_for_selector("#panel .group")


def test_what_policies_deny_is_apart(page, server):
    denied, some = (EDGE.format(client, "full/sleep") for client in ("legacy/sleep", "full/httpbin"))
    condition = "conditional: if GET (AuthorizationPolicy full/sleep)"
    open_view(page, server, "map")
    assert ", 3 denied" in page.text_content(".summary")
    assert (
        page.get_attribute(denied, "aria-label") == "sleep.legacy to sleep.full: denied (AuthorizationPolicy)"
    )
    assert page.get_attribute(some, "aria-label") == f"httpbin.full to sleep.full: mutual TLS, {condition}"
    dashes = "selector => getComputedStyle(document.querySelector(`${selector} .stroke`)).strokeDasharray"
    assert len({page.evaluate(dashes, line) for line in (denied, some, ".edge.mtls", ".edge.plaintext")}) == 4
    assert (
        page.locator(f"{some.replace('.edge[data-key', '.label[data-edge')} text").text_content()
        == "conditional"
    )
    page.select_option('[data-key="only"]', "denied")
    page.wait_for_selector(some, state="detached")
    clients = ("legacy/httpbin", "legacy/sleep", "partial/httpbin")
    expected = {f"workload/{client} service/full/sleep" for client in clients}
    assert (edges(page, "denied"), edges(page, "mtls") | edges(page, "plaintext")) == (expected, set())
    page.click("summary[data-key=listing]")
    page.wait_for_selector(".listing td .badge.denied")
    assert page.locator(".listing td .badge.denied").count() == 3
    for client, service, text in (
        ("sleep.legacy", "sleep.full", "denied to sleep.full"),
        ("httpbin.full", "sleep.full", "conditional Requests are allowed if GET"),
    ):
        open_view(page, server, f"map?client={client}&service={service}")
        page.wait_for_selector("#panel .badge.denied")
        assert text in page.inner_text("#panel .result").replace("\n", " ")


def test_map_filters_are_part_of_the_url(page, server):
    open_view(page, server, "map")
    page.select_option('[data-key="only"]', "plaintext")
    page.wait_for_selector(EDGE.format("full/sleep", "full/httpbin"), state="detached")
    assert not edges(page, "mtls")
    assert edges(page, "plaintext")
    page.select_option('[data-key="namespace"]', "partial")
    page.wait_for_selector(EDGE.format("legacy/sleep", "full/httpbin"), state="detached")
    assert all("/partial/" in edge for edge in edges(page, "plaintext") | edges(page, "mixed"))
    assert page.evaluate("location.hash") == "#/map?only=plaintext&namespace=partial"
    page.select_option('[data-key="only"]', "problems")
    page.wait_for_selector(".empty")
    assert "Nothing matches" in page.text_content(".empty")


def test_slash_focuses_the_search(page, server):
    open_view(page, server, "map")
    page.keyboard.press("/")
    page.keyboard.type("sleep.full")
    page.wait_for_selector(".node.dim")
    assert page.get_attribute('[data-key="workload/full/sleep"]', "class") == "node client"
    assert page.input_value("input[type=search]") == "sleep.full"
    page.keyboard.press("Escape")
    page.wait_for_selector(".node.dim", state="detached")


def test_policy_change_is_seen_on_the_map(page, own_server):
    open_view(page, own_server, "map")
    before = page.get_attribute('[data-key="workload/full/sleep"] rect', "y")
    page.wait_for_selector(f"{EDGE.format('legacy/sleep', 'full/httpbin')}.plaintext", state="attached")
    (own_server.folder / "strict.yaml").write_text(STRICT)
    page.wait_for_selector(f"{EDGE.format('legacy/sleep', 'full/httpbin')}.fails", state="attached")
    assert page.get_attribute('[data-key="workload/full/sleep"] rect', "y") == before
    assert "server requires mutual TLS" in page.text_content(".label.fails text")
    (own_server.folder / "strict.yaml").unlink()
    page.wait_for_selector(f"{EDGE.format('legacy/sleep', 'full/httpbin')}.plaintext", state="attached")


def test_change_of_an_edge_renders_only_that_edge(page, own_server):
    open_view(page, own_server, "map")
    edge = EDGE.format("full/sleep", "full/httpbin")
    page.wait_for_selector(f"{edge}.mtls", state="attached")
    page.evaluate("for (const element of document.querySelectorAll('.output *')) element.isKnown = true")
    (own_server.folder / "rule.yaml").write_text(RULE)
    page.wait_for_selector(f"{edge}.plaintext", state="attached")
    rendered = """(selector) => [...document.querySelectorAll(selector)]
        .filter((element) => !element.isKnown).map((element) => element.dataset.key)"""
    assert page.evaluate(rendered, ".edge[role]") == ["workload/full/sleep service/full/httpbin"]
    assert page.evaluate(rendered, ".node, .namespace-title, .legend, .listing") == []


def test_focus_stays_on_an_edge_that_changes(page, own_server):
    open_view(page, own_server, "map")
    edge = EDGE.format("full/sleep", "full/httpbin")
    page.focus(edge)
    (own_server.folder / "rule.yaml").write_text(RULE)
    page.wait_for_selector(f"{edge}.plaintext", state="attached")
    assert page.evaluate("document.activeElement.dataset.key") == "workload/full/sleep service/full/httpbin"


def test_lines_are_easy_to_hit_and_show_the_focus(page, server):
    open_view(page, server, "map")
    edge = EDGE.format("legacy/sleep", "full/httpbin")
    style = "(line) => ['strokeWidth', 'strokeOpacity'].map((name) => getComputedStyle(line)[name])"
    width, opacity = page.eval_on_selector(f"{edge} .hit", style)
    assert float(width.removesuffix("px")) >= 12
    assert opacity == "0"
    page.focus('[data-key="workload/legacy/sleep"]')
    page.keyboard.press("ArrowRight")
    focused = page.evaluate_handle("document.activeElement.querySelector('.hit')").as_element()
    assert float(focused.evaluate(style)[1]) > 0.3


def test_connections_are_a_list_on_a_narrow_screen(page, server):
    page.set_viewport_size({"width": 390, "height": 844})
    open_view(page, server, "map")
    page.wait_for_selector(".connections")
    assert page.query_selector("svg.map") is None
    connection = page.locator('.connections [data-key="workload/legacy/sleep service/full/httpbin"]')
    assert "from sleep.legacy" in connection.inner_text()
    assert "plaintext (client has no sidecar)" in connection.inner_text()
    assert connection.bounding_box()["height"] >= 44
    connection.click()
    page.wait_for_selector("#panel .group")
    assert "sleep.legacy → httpbin.full" in page.text_content("#panel")
    page.keyboard.press("Escape")
    page.wait_for_selector(".connections")
    page.fill("input[type=search]", "sleep.legacy partial")
    page.wait_for_selector(".connections >> text=sleep.full", state="detached")
    page.set_viewport_size({"width": 1440, "height": 900})
    page.wait_for_selector("svg.map")


def test_accepted_and_refused_plaintext_are_apart(page, own_server):
    """The client 127.10.3.2 is sleep.legacy; 127.0.0.1 is no pod."""
    clients = [("127.10.3.2", 8080, False), ("127.10.3.2", 8080, True), ("127.0.0.1", 8080, True)]
    report_connections(own_server.process.xds, HTTPBIN, clients)
    open_view(page, own_server, "migration?namespace=full")
    page.wait_for_selector("td .clients")
    accepted, refused = (
        page.locator("tbody tr").first.locator("td:nth-child(4)").inner_text().split("refused")
    )
    assert "plaintext accepted" in accepted
    assert "from legacy/sleep" in accepted
    assert "127.0.0.1" not in accepted
    assert "from 127.0.0.1 (a process in the server's own pod" in refused
    open_view(page, own_server, "map?client=sleep.legacy&service=httpbin.full")
    assert edges(page, "mtls") == set()
    page.wait_for_selector("#panel figure >> nth=1")
    text = page.inner_text("#panel")
    assert "plaintext accepted" in text
    assert "plaintext refused" in text
    assert "Requests in each minute of the last hour: at most 1" in text
    assert "60 min ago" in text
    outside = page.locator(EDGE.format("outside the mesh/clients", "full/httpbin"))
    label = outside.get_attribute("aria-label")
    assert label.startswith("clients outside the mesh to httpbin.full: plaintext (client has no sidecar)")
    assert label.endswith("Observed: plaintext refused, requests fail")
    label = page.get_attribute(EDGE.format("legacy/sleep", "full/httpbin"), "aria-label")
    assert label.endswith("Observed: plaintext accepted, plaintext refused, requests fail")
    text = page.text_content('.label.failing[data-edge="workload/legacy/sleep service/full/httpbin"] text')
    assert text == "2/min, plaintext refused, 1 failed"
    page.keyboard.press("Escape")
    page.click(".summary >> text=show all")
    page.wait_for_selector(EDGE.format("full/sleep", "full/httpbin"), state="attached")
    assert page.input_value('[data-key="only"]') == "possible"
    page.select_option('[data-key="only"]', "")
    page.wait_for_selector(EDGE.format("full/sleep", "full/httpbin"), state="detached")
    page.click('[data-key="workload/full/sleep"]')
    page.wait_for_selector(EDGE.format("full/sleep", "full/httpbin"), state="attached")
    assert "Possible connections of sleep.full" in page.inner_text(".summary")


def test_map_leads_to_who_would_break(page, server):
    open_view(page, server, "map")
    page.click('[data-key="migration partial"]')
    page.wait_for_selector("h1 >> text=Migration")
    page.wait_for_selector(".breaks strong")
    assert page.evaluate("location.hash") == "#/migration?namespace=partial"
    assert page.locator("tbody tr").count() == 2
    row = page.locator("tbody tr").first.inner_text()
    assert "httpbin.legacy, sleep.legacy, httpbin.partial → httpbin.partial:8000" in row
    assert "0 % of 2 pods" in page.inner_text(".headline")
    verdict = (
        "partial cannot be locked: 3 clients (httpbin.legacy, sleep.legacy, httpbin.partial) would break."
    )
    assert verdict in page.inner_text(".verdict")


def test_verdict_of_a_workload(page, server):
    open_view(page, server, "migration?namespace=full&search=httpbin.full")
    page.wait_for_selector(".verdict >> text=httpbin.full cannot be locked")


# --- tables -------------------------------------------------------------------------------------------------


def test_migration_names_who_would_break(page, server):
    open_view(page, server, "migration")
    page.wait_for_selector("summary[data-key='breaks partial ']")
    page.click("summary[data-key='breaks partial ']")
    row = page.locator("tr", has=page.locator("[data-key='toggle partial']"))
    assert "1 of 2" in row.inner_text()
    assert "httpbin.legacy, sleep.legacy" in row.inner_text()
    assert "add a sidecar to httpbin.legacy, sleep.legacy" in row.inner_text()
    assert "Add sidecars to httpbin" in row.inner_text()
    assert "0 % of 6 pods" in page.inner_text(".headline")
    assert "none" in page.locator("tr", has=page.locator("[data-key='toggle full']")).inner_text()
    assert "not observed" in page.locator("tr", has=page.locator("[data-key='toggle legacy']")).inner_text()
    page.click("[data-key='toggle full']")
    page.wait_for_selector("tr.child")
    assert page.locator("tr.child").count() == 2
    page.select_option('[data-key="stage"]', "sidecars")
    page.wait_for_selector("[data-key='toggle full']", state="detached")


def test_migration_says_how_much_was_observed(page, server, tmp_path):
    open_view(page, server, "migration")
    page.wait_for_selector("text=sidecars reported in the last")
    assert "dropped" not in page.inner_text(".output")
    with serving(istio_task(tmp_path / "mesh"), "--observe=false") as process:
        open_view(page, Server(tmp_path / "mesh", process), "migration")
        page.wait_for_selector("text=Observation is disabled")
        assert "not observed" in page.locator("tr", has=page.locator("[data-key='toggle full']")).inner_text()


def test_migration_is_done_when_all_is_strict_and_connected(page, own_server):
    open_view(page, own_server, "migration")
    (own_server.folder / "strict.yaml").write_text(STRICT)
    row = page.locator("tr", has=page.locator("[data-key='toggle full']"))
    row.locator("text=Find out why 2 of 2 sidecars are not connected to the control plane").wait_for()
    assert "0 % of 6 pods" in page.inner_text(".headline")
    assert "by PeerAuthentication full/default" in row.inner_text()
    port = own_server.process.xds
    with connected_sidecar(port), connected_sidecar(port, HTTPBIN):
        page.wait_for_selector(".headline >> text=33 % of 6 pods")
        assert "Done" in row.inner_text()


def test_policies_for_observed_traffic_can_be_copied(page, own_server):
    """The client 127.10.3.2 is sleep.legacy."""
    report_connections(own_server.process.xds, HTTPBIN, [("127.10.3.2", 8080, False)])
    open_view(page, own_server, "access?namespace=full")
    row = page.locator("tbody tr", has_text="httpbin.full")
    allowed = row.locator("td:nth-child(2)").inner_text()
    assert re.findall(r"port 8080|all clients|legacy/sleep", allowed) == [
        "port 8080",
        "all clients",
        "legacy/sleep",
    ]
    assert "none: no traffic to it was observed" in page.inner_text("tr:has-text('sleep.full')")
    assert page.inner_text(".summary").startswith("New policies for 1 of 2 workloads, from the traffic of")
    assert "incomplete the sidecar is not connected: " in page.inner_text(".output")
    page.click('[data-key="policy httpbin.full"]')
    shown = row.locator("pre").inner_text()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click('[data-key="copy"]')
    page.wait_for_selector("[data-key=copy] >> text=Copied")
    comments, _, copied = page.evaluate("navigator.clipboard.readText()").partition("apiVersion")
    assert f"apiVersion{copied}" == f"{shown}\n"
    assert "\n# Incomplete: the sidecar is not connected: " in comments
    assert yaml.safe_load(shown)["spec"]["rules"] == [{"to": [{"operation": {"ports": ["8080"]}}]}]
    (own_server.folder / "policy.yaml").write_text(shown)
    page.wait_for_selector("text=none: already restricted by AuthorizationPolicy full/httpbin")
    unused = page.locator("tbody tr", has_text="full/httpbin rules[0]")
    assert "httpbin.full:8000" in unused.inner_text()
    assert "legacy/sleep" not in unused.locator("td:nth-child(3)").inner_text()
    assert page.is_visible("h2:text('Access that was not observed')")
    page.select_option('[data-key="rows"]', "policies")
    page.wait_for_selector("text=Nothing matches the filters")


def test_policies_are_not_copied_without_permission(page, own_server):
    report_connections(own_server.process.xds, HTTPBIN, [("127.10.3.2", 8080, False)])
    page.add_init_script("navigator.clipboard.writeText = () => Promise.reject(new Error())")
    open_view(page, own_server, "access")
    page.click('[data-key="copy"]')
    page.wait_for_selector("[data-key=copy] >> text=use xds generate")


def test_proxies_have_the_words_of_xds_status(page, server):
    open_view(page, server, "proxies")
    row = page.locator("tr", has_text="sleep.full")
    assert "waiting" in row.inner_text()
    assert "CDS waiting" in row.inner_text()
    assert "not connected" in page.locator("tr", has_text="httpbin.partial").inner_text()
    page.click("[data-key='sort Proxy']")
    page.wait_for_selector("th[aria-sort=ascending]")
    page.click("[data-key='sort Proxy']")
    page.wait_for_selector("th[aria-sort=descending]")
    assert "httpbin.partial" in page.locator("tbody tr").first.inner_text()
    page.select_option('[data-key="state"]', "not connected")
    page.wait_for_selector("text=sleep.full", state="detached")
    assert page.locator("tbody tr").count() == 2


def test_proxy_has_its_redacted_configuration(page, server):
    open_view(page, server, "proxies")
    page.click("text=sleep.full")
    page.wait_for_selector("text=All proxies")
    page.wait_for_selector("h2 >> text=Configuration")
    assert NODE_ID in page.inner_text(".facts")
    page.fill("input[type=search]", "CDS 8000 httpbin.full")
    page.click("tbody a >> nth=0")
    page.wait_for_selector("#panel pre")
    assert "httpbin.full" in json.loads(page.inner_text("#panel pre"))["name"]


def test_problems_name_the_place(page, server):
    open_view(page, server, "problems")
    text = page.inner_text("tbody")
    assert "invalid.yaml" in text
    assert "STRICKT" in text
    page.select_option('[data-key="namespace"]', "partial")
    page.fill("input[type=search]", "no such text")
    page.wait_for_selector("text=No problem matches the filters")


def test_rollout_shows_what_it_waits_for(page, tmp_path):
    folder = istio_task(tmp_path / "mesh")
    # The rollout must not continue without the sidecar before a slow browser shows it.
    with serving(folder, "--rollout-timeout=600") as process:
        open_view(page, Server(folder, process), "rollouts")
        assert "No rollout is in progress" in page.inner_text(".empty")
        with connected_sidecar(process.xds):
            (folder / "disable.yaml").write_text(STRICT.replace("STRICT", "DISABLE"))
            page.wait_for_selector("h3 >> text=Endpoints")
            row = page.inner_text("tbody tr >> nth=0")
            assert "DISABLE" in row
            assert "sleep.full" in row


def test_rollout_is_listed_when_it_has_finished(page, own_server):
    open_view(page, own_server, "rollouts")
    (own_server.folder / "strict.yaml").write_text(STRICT)
    page.wait_for_selector("td >> text=PERMISSIVE → STRICT")
    row = page.locator("tr", has_text="httpbin.full")
    assert "httpbin:8080" in row.inner_text()
    assert "✓ finished" in row.inner_text()
    assert "contract" in row.inner_text()
    page.wait_for_selector(".empty >> text=No rollout is in progress")
    page.select_option('[data-key="namespace"]', "full")
    page.fill("input[type=search]", "no such text")
    page.wait_for_selector("text=No finished transition matches the filters")


def test_problems_of_the_running_mesh_are_listed(page, tmp_path):
    """The certificates of this CA end in ten days."""
    folder = istio_task(tmp_path / "mesh")
    with serving(folder, "--state-dir", write_ca(tmp_path / "state", days=10, age=60)) as process:
        open_view(page, Server(folder, process), "problems")
        page.wait_for_selector("td >> text=the CA certificate expires on")
        assert "xds rotate-root" in page.inner_text("tbody")


# --- states -------------------------------------------------------------------------------------------------


def test_number_of_problems_is_in_the_navigation(page, own_server):
    open_view(page, own_server, "map")
    page.wait_for_selector("#problem-count", state="hidden")
    (own_server.folder / "invalid.yaml").write_text(INVALID)
    page.wait_for_selector("#problem-count >> text=2")  # It is invalid, and its selector matches no pod.
    (own_server.folder / "invalid.yaml").unlink()
    page.wait_for_selector("#problem-count", state="hidden")


def test_page_reconnects(page, own_server):
    open_view(page, own_server, "migration")
    own_server.process.stop()
    page.wait_for_selector("#banner:not([hidden])")
    assert page.inner_text("#connection") == "Disconnected"
    assert "full" in page.inner_text("tbody")
    page.click("nav >> text=Rollouts")
    page.wait_for_selector("text=The control plane cannot be reached. The page connects again")
    page.click("nav >> text=Migration")
    page.wait_for_selector(".empty >> text=This view cannot be shown")
    (own_server.folder / "strict.yaml").write_text(STRICT)
    own_server.process.start()
    page.wait_for_selector("#connection.live")
    page.wait_for_selector("#banner", state="hidden")
    page.wait_for_selector("td >> text=Find out why 2 of 2 sidecars are not connected")


def test_failed_load_is_repeated(page, server):
    """The stream of events may stay open, and then nothing else causes a load."""
    open_view(page, server, "problems")
    failures = []

    def fail_once(route) -> None:
        if failures:
            route.continue_()
        else:
            failures.append(route.request.url)
            route.abort()

    page.route("**/api/v1/proxies*", fail_once)
    page.click("#nav a >> text=Proxies")
    page.wait_for_selector("main:not([aria-busy]) td >> text=sleep.full")
    assert len(failures) == 1


def test_malformed_url_shows_the_default_view(page, server):
    open_view(page, server, "proxies/%")
    page.wait_for_selector("h1 >> text=Map")
    page.wait_for_selector(EDGE.format("full/sleep", "full/httpbin"), state="attached")


def test_empty_mesh(page, tmp_path):
    (tmp_path / "mesh").mkdir()
    with serving(tmp_path / "mesh") as process:
        server = Server(tmp_path / "mesh", process)
        for view, text in {
            "map": "There are no workloads and services",
            "migration": "There are no pods",
            "access": "There are no pods with a sidecar",
            "rollouts": "No rollout is in progress",
            "proxies": "No proxy is connected",
            "problems": "No problems",
        }.items():
            open_view(page, server, view)
            assert text in page.inner_text(".empty")


def test_large_mesh_is_collapsed_and_paged(page, tmp_path):
    folder = many_services(tmp_path / "mesh", 10, 25)
    with serving(folder) as process:
        server = Server(folder, process)
        open_view(page, server, "map")
        assert page.locator(".matrix tbody tr").count() == 10
        assert page.locator(".matrix [data-result=mixed]").count() == 100
        page.focus('[data-key="workloads/ns3 services/ns7"]')
        page.keyboard.press("Enter")
        page.wait_for_selector('[data-key="service/ns7/s24"]')
        assert page.locator(".namespace-title[aria-expanded=true]").count() == 2
        page.click("text=Back to all namespaces")
        page.wait_for_selector(".matrix")
        page.fill("input[type=search]", "s24.ns7")
        page.wait_for_selector('[data-key="service/ns7/s24"]:not(.dim)')
        assert page.locator(".namespace-title[aria-expanded=true]").count() == 1
        page.fill("input[type=search]", "s99")
        page.wait_for_selector("text=Nothing matches the search")
        page.fill("input[type=search]", "s2")
        page.wait_for_selector("text=79 matches: type more to open their namespaces")
        page.fill("input[type=search]", "")
        page.click('[data-key="namespace from ns3"]')
        page.wait_for_selector('[data-key="service/ns3/s24"]')
        assert page.locator(".node").count() == 18 + 50
        page.click("summary[data-key=listing]")
        page.wait_for_selector(".listing .pager")
        assert page.locator(".listing tbody tr").count() == 200
        page.click(".listing [data-key=next]")
        page.wait_for_selector(".listing [data-key=previous]:not([disabled])")
        open_view(page, server, "migration?rows=all")
        assert page.locator("tbody tr").count() == 200
        assert "1 to 200 of 260" in page.inner_text(".pager")


def test_matrix_is_accessible_and_fits_the_screen(page, tmp_path):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    folder = many_services(tmp_path / "mesh", 60, 1)
    with serving(folder) as process:
        node_id = "sidecar~10.0.1.1~s0-0.ns1~ns1.svc.cluster.local"
        report_connections(process.xds, node_id, [("10.0.3.1", 8080, True)] * 1200)
        open_view(page, Server(folder, process), "map")
        page.wait_for_selector(".matrix .failing >> text=1,200")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            results = axe.run(page)
            assert results.response["violations"] == [], results.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]
        assert "1,040 further ones not shown" in page.inner_text(".summary")


def test_policy_change_is_seen_on_a_large_map(page, tmp_path):
    folder = many_services(tmp_path / "mesh", 10, 20)
    with serving(folder) as process:
        open_view(page, Server(folder, process), "map")
        edge = '.matrix [data-key="workloads/ns1 services/ns2"]'
        page.wait_for_selector(f"{edge}.mixed", state="attached")
        (folder / "strict.yaml").write_text(STRICT.replace("full", "ns2"))
        page.wait_for_selector(f"{edge}.fails", state="attached")
        (folder / "strict.yaml").unlink()
        allow = "  rules: [{to: [{operation: {methods: [GET]}}]}]\n"
        metadata = "metadata: {name: reads, namespace: ns2}\n"
        text = f"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n{metadata}spec:\n"
        (folder / "reads.yaml").write_text(text + allow)
        page.wait_for_selector(f"{edge}.mixed.conditional >> text=if", state="attached")
        (folder / "reads.yaml").write_text(text.replace("spec:", "spec: {}"))
        page.wait_for_selector(f"{edge}.denied", state="attached")


# --- everybody ----------------------------------------------------------------------------------------------


def test_views_are_accessible(page, server):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for route in (*VIEWS, *MORE_ROUTES):
        open_view(page, server, route)
        page.wait_for_selector("#panel .group" if "client=" in route else ".output > :not(.loading)")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            results = axe.run(page)
            assert results.response["violations"] == [], f"{route}: {results.generate_report()}"


def test_report_for_auditors_is_accessible(page, server, tmp_path):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    result = xds("report", "--xds-address", f"127.0.0.1:{server.process.xds}")
    assert (result.exit_code, result.stderr) == (0, "")
    (tmp_path / "report.html").write_text(result.stdout)
    page.goto(f"file://{tmp_path}/report.html")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        results = axe.run(page)
        assert results.response["violations"] == [], results.generate_report()
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.emulate_media(media="print")
    assert not page.is_visible("nav")


def test_list_of_connections_is_accessible(page, server):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.set_viewport_size({"width": 390, "height": 844})
    open_view(page, server, "map")
    page.wait_for_selector(".connections .badge.denied")
    assert "conditional: if GET" in page.inner_text('.connections [data-key="service/full/sleep"] + ul')
    results = axe.run(page)
    assert results.response["violations"] == [], results.generate_report()


@pytest.mark.parametrize("width", [390, 1440])
def test_views_fit_the_screen(page, server, width):
    page.set_viewport_size({"width": width, "height": 844})
    for route in (*VIEWS, *MORE_ROUTES):
        open_view(page, server, route)
        page.wait_for_selector("#panel .group" if "client=" in route else ".output > :not(.loading)")
        assert page.evaluate("document.documentElement.scrollWidth") == width, route


def test_keyboard_reaches_every_view(page, server):
    open_view(page, server, "map")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "skip"
    for view in VIEWS:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.hash") == f"#/{view}"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_selector("h1 >> text=Problems")
    assert page.evaluate("document.activeElement.id") == "main"
