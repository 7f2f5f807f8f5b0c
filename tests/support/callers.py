"""Manifests that prove clients outside the mesh, and what a plan says of them under STRICT."""

from __future__ import annotations

VERSIONS = {
    "APIService": "apiregistration.k8s.io/v1",
    "CustomResourceDefinition": "apiextensions.k8s.io/v1",
    "HTTPRoute": "gateway.networking.k8s.io/v1",
    "Ingress": "networking.k8s.io/v1",
    "PodMonitor": "monitoring.coreos.com/v1",
    "Service": "v1",
    "ServiceMonitor": "monitoring.coreos.com/v1",
    "ValidatingWebhookConfiguration": "admissionregistration.k8s.io/v1",
    "VirtualService": "networking.istio.io/v1",
}

APP = """
    apiVersion: v1
    kind: Namespace
    metadata: {name: shop, labels: {istio-injection: enabled}}
    ---
    apiVersion: apps/v1
    kind: Deployment
    metadata: {name: web, namespace: shop, labels: {app: web}}
    spec:
      selector: {matchLabels: {app: web}}
      template:
        metadata: {labels: {app: web}}
        spec:
          containers:
          - name: web
            image: web
            ports: [{containerPort: 8080, name: http}, {containerPort: 8443, name: https}]
    ---
    apiVersion: v1
    kind: Service
    metadata: {name: web, namespace: shop, labels: {app: web}}
    spec:
      selector: {app: web}
      ports:
      - {name: http, port: 80, targetPort: http}
      - {name: https, port: 443, targetPort: https}
"""


def manifest(ref: str, body: str, *, version: str = "", annotations: str = "") -> str:
    """Return an object, from `Kind namespace/name` and its other fields."""
    kind, _, place = ref.partition(" ")
    *namespace, name = place.split("/")
    metadata = f"name: {name}" + "".join(f", namespace: {each}" for each in namespace)
    metadata += f", annotations: {{{annotations}}}" if annotations else ""
    return f"apiVersion: {version or VERSIONS[kind]}\nkind: {kind}\nmetadata: {{{metadata}}}\n{body}\n"


def crd(client_config: str) -> str:
    webhook = f"{{strategy: Webhook, webhook: {{clientConfig: {client_config}}}}}"
    return manifest("CustomResourceDefinition things.example.com", f"spec: {{conversion: {webhook}}}")


def public(spec: str) -> str:
    return manifest("Service shop/public", f"spec: {{{spec}, selector: {{app: web}}}}")


def route(rules: str, namespace: str = "shop") -> str:
    return manifest(
        f"HTTPRoute {namespace}/web", f"spec: {{parentRefs: [{{name: public}}], rules: [{rules}]}}"
    )


def virtual_service(spec: str, namespace: str = "shop", gateways: str = "public", version: str = "") -> str:
    common = f"gateways: [{gateways}], hosts: [example.com]"
    return manifest(f"VirtualService {namespace}/web", f"spec: {{{common}, {spec}}}", version=version)


def monitor(
    endpoint: str, kind: str = "Service", selector: str = "selector: {matchLabels: {app: web}}"
) -> str:
    """Return a monitor of namespace `shop` for Services or pods."""
    endpoints = "endpoints" if kind == "Service" else "podMetricsEndpoints"
    return manifest(f"{kind}Monitor shop/web", f"spec: {{{selector}, {endpoints}: [{endpoint}]}}")


WEB = "{name: web, port: 80}"
BUCKET = "kind: Bucket, group: example.com, name: bucket"
MIRROR = f"filters: [{{type: RequestMirror, requestMirror: {{backendRef: {WEB}}}}}]"
TO_WEB = "{host: web, port: {number: 80}}"
KEYS = "certFile: /etc/prom-certs/cert-chain.pem, keyFile: /etc/prom-certs/key.pem"
SECRETS = "cert: {secret: {name: prometheus, key: tls.crt}}, keySecret: {name: prometheus, key: tls.key}"
AUTH_URL = "http://web.shop.svc.cluster.local/auth?rd=$escaped_request_uri"
CALLERS = {
    "ValidatingWebhookConfiguration": manifest(
        "ValidatingWebhookConfiguration web",
        "webhooks: [{name: a.b.c, clientConfig: {service: {name: web, namespace: shop, path: /}}}]",
    ),
    "MutatingWebhookConfiguration": manifest(
        "MutatingWebhookConfiguration web",
        'webhooks:\n- {name: x.b.c, clientConfig: {url: "https://example.com"}}\n'
        "- {name: a.b.c, clientConfig: {service: {name: web, namespace: shop, port: 443}}}",
        version="admissionregistration.k8s.io/v1beta1",
    ),
    "webhook by URL": manifest(
        "ValidatingWebhookConfiguration web",
        'webhooks:\n- {name: a.b.c, clientConfig: {url: "https://web.shop.svc.cluster.local/x"}}\n'
        '- {name: d.b.c, clientConfig: {url: "https://[web.shop.svc/x"}}\n'
        '- {name: e.b.c, clientConfig: {url: "https://web.shop.example/x"}}',
    ),
    "APIService": manifest(
        "APIService v1beta1.metrics.k8s.io",
        "spec: {group: metrics.k8s.io, version: v1beta1, service: {name: web, namespace: shop}}",
    ),
    "CustomResourceDefinition": crd("{service: {name: web, namespace: shop}}"),
    "conversion by URL": crd('{url: "https://web.shop.svc:443/x"}'),
    "LoadBalancer": public("type: LoadBalancer, ports: [{port: 80, targetPort: 8080}]"),
    "NodePort": public("type: NodePort, ports: [{port: 80, targetPort: http}]"),
    "externalIPs": public("externalIPs: [192.0.2.1], ports: [{port: 80, targetPort: http}]"),
    "Ingress": manifest(
        "Ingress shop/web",
        "spec: {rules: [{http: {paths: [{path: /, pathType: Prefix, "
        "backend: {service: {name: web, port: {name: http}}}}]}}]}",
    ),
    "Ingress v1beta1": manifest(
        "Ingress shop/web",
        "spec: {backend: {serviceName: web, servicePort: 80}}",
        version="networking.k8s.io/v1beta1",
    ),
    "auth-url of an Ingress": manifest(
        "Ingress edge/web",
        "spec: {defaultBackend: {resource: {kind: Bucket, name: bucket}}}",
        annotations=f'nginx.ingress.kubernetes.io/auth-url: "{AUTH_URL}"',
    ),
    "HTTPRoute": route("{backendRefs: [{name: web, namespace: shop, port: 80}]}", "edge"),
    "mirror of an HTTPRoute": route(f"{{{MIRROR}, backendRefs: [{{{BUCKET}}}]}}"),
    "mirror of a backend of an HTTPRoute": route(f"{{backendRefs: [{{{BUCKET}, {MIRROR}}}]}}"),
    "mirror of a VirtualService": virtual_service(f"http: [{{redirect: {{uri: /}}, mirror: {TO_WEB}}}]"),
    "mirrors of a VirtualService": virtual_service(
        f"http: [{{redirect: {{uri: /}}, mirrors: [{{destination: {TO_WEB}}}]}}]"
    ),
    "delegate of a VirtualService": virtual_service(
        "http: [{delegate: {name: web, namespace: shop}}]", "edge"
    )
    + "---\n"
    + manifest("VirtualService shop/web", f"spec: {{http: [{{route: [{{destination: {TO_WEB}}}]}}]}}"),
    "VirtualService": virtual_service(
        "http: [{route: [{destination: {host: web.shop.svc.cluster.local, port: {number: 80}}}]}]",
        "edge",
        "mesh, edge/public",
    ),
    "VirtualService by short name": virtual_service(
        "tls: [{route: [{destination: {host: web, port: {number: 443}}}]}]",
        version="networking.istio.io/v1beta1",
    ),
    "ExternalName": manifest("Service out/alias", "spec: {type: ExternalName, externalName: target.shop.svc}")
    + "---\n"
    + manifest("Service shop/target", "spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}"),
    "ServiceMonitor": manifest(
        "ServiceMonitor monitoring/web",
        "spec: {namespaceSelector: {matchNames: [shop]}, endpoints: [{port: http}], "
        "selector: {matchExpressions: [{key: app, operator: In, values: [web]}]}}",
    ),
    "ServiceMonitor targetPort": manifest(
        "ServiceMonitor monitoring/web",
        "spec:\n  namespaceSelector: {any: true}\n  selector: {matchLabels: {app: web}}\n"
        "  endpoints: [{targetPort: 8080}]",
    ),
    "ServiceMonitor with a client certificate": monitor(
        "{port: https, scheme: https, "
        f"tlsConfig: {{caFile: /etc/prom-certs/root-cert.pem, {KEYS}, insecureSkipVerify: true}}}}"
    ),
    "PodMonitor with a client certificate": monitor(
        f"{{port: https, scheme: https, tlsConfig: {{{SECRETS}, insecureSkipVerify: true}}}}", "Pod"
    ),
    "ServiceMonitor with a scrape class": monitor(
        "{port: https, scheme: https}", selector="selector: {matchLabels: {app: web}}, scrapeClass: mesh"
    ),
    "ServiceMonitor https": monitor("{port: https, scheme: https, tlsConfig: {insecureSkipVerify: true}}"),
    "ServiceMonitor that verifies the host name": monitor(
        f"{{port: https, scheme: https, tlsConfig: {{{KEYS}}}}}"
    ),
    "ServiceMonitor tlsConfig without https": monitor(
        "{port: http, tlsConfig: {certFile: /certs/tls.crt, insecureSkipVerify: true}}"
    ),
    "PodMonitor": monitor("{port: http}", "Pod"),
    "scraped Service": manifest(
        "Service shop/scraped",
        "spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}",
        annotations='prometheus.io/scrape: "true"',
    ),
    "port of a scraped Service": manifest(
        "Service shop/scraped",
        "spec: {selector: {app: web}, ports: [{port: 443, targetPort: https}]}",
        annotations='prometheus.io/scrape: "true", prometheus.io/port: "8080"',
    ),
}
EXPECTED = {
    "ValidatingWebhookConfiguration": ("api-server", 8443, "ValidatingWebhookConfiguration web"),
    "MutatingWebhookConfiguration": ("api-server", 8443, "MutatingWebhookConfiguration web"),
    "webhook by URL": ("api-server", 8443, "ValidatingWebhookConfiguration web"),
    "APIService": ("api-server", 8443, "APIService v1beta1.metrics.k8s.io"),
    "CustomResourceDefinition": ("api-server", 8443, "CustomResourceDefinition things.example.com"),
    "conversion by URL": ("api-server", 8443, "CustomResourceDefinition things.example.com"),
    "LoadBalancer": ("outside-client", 8080, "Service shop/public"),
    "NodePort": ("outside-client", 8080, "Service shop/public"),
    "externalIPs": ("outside-client", 8080, "Service shop/public"),
    "Ingress": ("gateway", 8080, "Ingress shop/web"),
    "Ingress v1beta1": ("gateway", 8080, "Ingress shop/web"),
    "auth-url of an Ingress": ("gateway", 8080, "Ingress edge/web"),
    "HTTPRoute": ("gateway", 8080, "HTTPRoute edge/web"),
    "mirror of an HTTPRoute": ("gateway", 8080, "HTTPRoute shop/web"),
    "mirror of a backend of an HTTPRoute": ("gateway", 8080, "HTTPRoute shop/web"),
    "mirror of a VirtualService": ("gateway", 8080, "VirtualService shop/web"),
    "mirrors of a VirtualService": ("gateway", 8080, "VirtualService shop/web"),
    "delegate of a VirtualService": ("gateway", 8080, "VirtualService shop/web"),
    "VirtualService": ("gateway", 8080, "VirtualService edge/web"),
    "VirtualService by short name": ("gateway", 8443, "VirtualService shop/web"),
    "ExternalName": ("external-name", 8080, "Service out/alias"),
    "ServiceMonitor": ("prometheus-scrape", 8080, "ServiceMonitor monitoring/web"),
    "ServiceMonitor targetPort": ("prometheus-scrape", 8080, "ServiceMonitor monitoring/web"),
    "ServiceMonitor with a client certificate": ("prometheus-tls", 8443, "ServiceMonitor shop/web"),
    "PodMonitor with a client certificate": ("prometheus-tls", 8443, "PodMonitor shop/web"),
    "ServiceMonitor with a scrape class": ("prometheus-tls", 8443, "ServiceMonitor shop/web"),
    "ServiceMonitor https": ("prometheus-scrape", 8443, "ServiceMonitor shop/web"),
    "ServiceMonitor that verifies the host name": ("prometheus-scrape", 8443, "ServiceMonitor shop/web"),
    "ServiceMonitor tlsConfig without https": ("prometheus-scrape", 8080, "ServiceMonitor shop/web"),
    "PodMonitor": ("prometheus-scrape", 8080, "PodMonitor shop/web"),
    "scraped Service": ("prometheus-scrape", 8080, "Service shop/scraped"),
    "port of a scraped Service": ("prometheus-scrape", 8080, "Service shop/scraped"),
}
