"""Pods as local processes: their addresses, and the requests of a pod `sleep`."""

import socket
import threading
from collections import Counter

import pytest

from xds.demo.curl import curl, identity
from xds.demo.play import FULL_FULL, LEGACY_PARTIAL, Answer
from xds.demo.pods import (
    ClientPod,
    addresses,
    application,
    check_addresses_free,
    find_not_listening,
    select_clients,
)
from xds.demo.processes import Processes, UnavailableError
from xds.demo.stage import Stage
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import TLS_MODE_LABEL, Meta, Pod, Ref, Service, ServicePort


def pod(name, namespace, address, *, sidecar=False, app="httpbin", app_address="127.20.9.1"):
    labels = {"app": app} | ({TLS_MODE_LABEL: "istio"} if sidecar else {})
    return Pod(
        meta=Meta(ref=Ref("Pod", namespace, name), labels=labels), address=address, app_address=app_address
    )


HTTPBIN = Service(
    meta=Meta(ref=Ref("Service", "partial", "httpbin")),
    selector={"app": "httpbin"},
    ports=(ServicePort(port=8000, target=8080, name="http"),),
)
SLEEP = pod("sleep", "legacy", "127.10.3.2", app="sleep")
MIGRATED = pod("httpbin", "partial", "127.10.2.1", sidecar=True)
NAKED = pod("httpbin-nosidecar", "partial", "127.10.2.2")
MESH = Mesh([HTTPBIN, SLEEP, MIGRATED, NAKED])


@pytest.fixture
def asked(monkeypatch):
    """Record the calls of curl instead of sending requests."""
    calls = []

    def record(url, **options):
        calls.append((url, options))
        return Answer("200")

    monkeypatch.setattr("xds.demo.pods.curl", record)
    return calls


def test_application_address_depends_on_the_sidecar():
    assert application(MIGRATED) == ("127.20.9.1", 8080)
    assert application(NAKED) == ("127.10.2.2", 8080)


def test_addresses_of_application_and_sidecar():
    assert set(addresses(SLEEP)) == set()
    assert set(addresses(NAKED)) == {("127.10.2.2", 8080)}
    assert set(addresses(MIGRATED)) == {
        ("127.20.9.1", 8080),
        *(("127.10.2.1", port) for port in (8080, 15000, 15002, 15021)),
    }


def test_address_in_use_is_reported():
    with socket.create_server(("127.10.9.1", 0)) as taken:
        where = taken.getsockname()
        with pytest.raises(UnavailableError, match=f"httpbin.full cannot listen on 127.10.9.1:{where[1]}"):
            check_addresses_free({where: "httpbin.full"})


def test_unavailable_address_is_reported():
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.0/8"):
        check_addresses_free({("192.0.2.1", 8080): "httpbin.full"})


def test_client_without_a_sidecar_alternates_ready_pods(asked):
    client = select_clients(MESH, iter([LEGACY_PARTIAL]))["sleep.legacy"]
    for _ in range(4):
        client.request("httpbin.partial")
    assert Counter(options["to"] for _, options in asked) == {
        ("127.10.2.1", 8080): 2,
        ("127.10.2.2", 8080): 2,
    }
    assert {url for url, _ in asked} == {"http://httpbin.partial:8000/headers"}
    assert {options["source"] for _, options in asked} == {"127.10.3.2"}


def test_client_with_a_sidecar_uses_its_proxy(asked):
    ClientPod(MESH, pod("sleep", "full", "127.10.1.2", sidecar=True, app="sleep")).request("httpbin.partial")
    assert asked == [
        (
            "http://httpbin.partial:8000/headers",
            {"source": "127.10.1.2", "to": ("127.10.1.2", 15002), "through_proxy": True},
        )
    ]


def test_unknown_service_gives_no_answer(asked):
    assert ClientPod(MESH, SLEEP).request("httpbin.nowhere") == Answer("000")
    assert asked == []


def test_only_the_clients_of_a_step_are_selected():
    assert select_clients(MESH, iter([FULL_FULL])) == {}


def test_server_that_does_not_listen_is_named():
    with socket.create_server(("127.10.9.1", 0)) as server:
        where = server.getsockname()
        assert find_not_listening({"httpbin.full": where}) == ""
    assert find_not_listening({"httpbin.full": where}).startswith(
        "httpbin.full does not listen on 127.10.9.1:"
    )


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n"])
def test_connection_closed_without_an_answer_is_000(answer):
    with socket.create_server(("127.10.9.1", 0)) as server:
        server.settimeout(60)

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        got = curl("http://a.b:8000/headers", source="127.10.9.2", to=server.getsockname())
        thread.join()
    assert got == Answer("000")


def test_refused_connection_is_000():
    with socket.create_server(("127.10.9.1", 0)) as server:
        where = server.getsockname()
    assert curl("http://a.b:8000/headers", source="127.10.9.2", to=where) == Answer("000")


def test_identity_is_the_uri_of_the_client_certificate():
    server, client = (f"spiffe://cluster.local/ns/full/sa/{name}" for name in ("httpbin", "sleep"))
    header = f'By={server};Hash=0a1b;Subject=\\"\\";URI={client}'
    body = f'{{"headers": {{"X-Forwarded-Client-Cert": "{header}"}}}}'.encode()
    assert identity(body) == "spiffe://cluster.local/ns/full/sa/sleep"
    assert identity(b'{"headers": {"Host": "httpbin.full:8000"}}') == ""


def test_start_waits_until_another_demo_has_released_its_addresses(tmp_path, monkeypatch):
    with socket.create_server(("127.10.9.1", 0)) as taken, Processes(tmp_path) as processes:
        stage = Stage(tmp_path, processes, sotw=False)
        monkeypatch.setattr("xds.demo.stage.STOP_TIMEOUT", 60)
        monkeypatch.setattr(processes, "check", taken.close)
        stage._wait_for_addresses({taken.getsockname(): "httpbin.full"})
        assert taken.fileno() == -1
