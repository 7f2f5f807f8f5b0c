"""Manifests that prove clients outside the mesh, and what a plan says of them under STRICT."""

from __future__ import annotations

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
CALLERS = {
    "ValidatingWebhookConfiguration": """
        apiVersion: admissionregistration.k8s.io/v1
        kind: ValidatingWebhookConfiguration
        metadata: {name: web}
        webhooks: [{name: a.b.c, clientConfig: {service: {name: web, namespace: shop, path: /}}}]
    """,
    "MutatingWebhookConfiguration": """
        apiVersion: admissionregistration.k8s.io/v1beta1
        kind: MutatingWebhookConfiguration
        metadata: {name: web}
        webhooks:
        - {name: x.b.c, clientConfig: {url: "https://example.com"}}
        - {name: a.b.c, clientConfig: {service: {name: web, namespace: shop, port: 443}}}
    """,
    "webhook by URL": """
        apiVersion: admissionregistration.k8s.io/v1
        kind: ValidatingWebhookConfiguration
        metadata: {name: web}
        webhooks:
        - {name: a.b.c, clientConfig: {url: "https://web.shop.svc.cluster.local/x"}}
        - {name: d.b.c, clientConfig: {url: "https://[web.shop.svc/x"}}
        - {name: e.b.c, clientConfig: {url: "https://web.shop.example/x"}}
    """,
    "APIService": """
        apiVersion: apiregistration.k8s.io/v1
        kind: APIService
        metadata: {name: v1beta1.metrics.k8s.io}
        spec: {group: metrics.k8s.io, version: v1beta1, service: {name: web, namespace: shop}}
    """,
    "CustomResourceDefinition": """
        apiVersion: apiextensions.k8s.io/v1
        kind: CustomResourceDefinition
        metadata: {name: things.example.com}
        spec:
          conversion:
            strategy: Webhook
            webhook: {clientConfig: {service: {name: web, namespace: shop}}}
    """,
    "conversion by URL": """
        apiVersion: apiextensions.k8s.io/v1
        kind: CustomResourceDefinition
        metadata: {name: things.example.com}
        spec:
          conversion:
            strategy: Webhook
            webhook: {clientConfig: {url: "https://web.shop.svc:443/x"}}
    """,
    "LoadBalancer": """
        apiVersion: v1
        kind: Service
        metadata: {name: public, namespace: shop}
        spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
    """,
    "NodePort": """
        apiVersion: v1
        kind: Service
        metadata: {name: public, namespace: shop}
        spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: http}]}
    """,
    "externalIPs": """
        apiVersion: v1
        kind: Service
        metadata: {name: public, namespace: shop}
        spec: {externalIPs: [192.0.2.1], selector: {app: web}, ports: [{port: 80, targetPort: http}]}
    """,
    "Ingress": """
        apiVersion: networking.k8s.io/v1
        kind: Ingress
        metadata: {name: web, namespace: shop}
        spec:
          rules:
          - http:
              paths:
              - {path: /, pathType: Prefix, backend: {service: {name: web, port: {name: http}}}}
    """,
    "Ingress v1beta1": """
        apiVersion: networking.k8s.io/v1beta1
        kind: Ingress
        metadata: {name: web, namespace: shop}
        spec: {backend: {serviceName: web, servicePort: 80}}
    """,
    "auth-url of an Ingress": """
        apiVersion: networking.k8s.io/v1
        kind: Ingress
        metadata:
          name: web
          namespace: edge
          annotations:
            nginx.ingress.kubernetes.io/auth-url: http://web.shop.svc.cluster.local/auth?rd=$escaped_request_uri
        spec: {defaultBackend: {resource: {kind: Bucket, name: bucket}}}
    """,
    "HTTPRoute": """
        apiVersion: gateway.networking.k8s.io/v1
        kind: HTTPRoute
        metadata: {name: web, namespace: edge}
        spec:
          parentRefs: [{name: public}]
          rules: [{backendRefs: [{name: web, namespace: shop, port: 80}]}]
    """,
    "mirror of an HTTPRoute": """
        apiVersion: gateway.networking.k8s.io/v1
        kind: HTTPRoute
        metadata: {name: web, namespace: shop}
        spec:
          parentRefs: [{name: public}]
          rules:
          - filters: [{type: RequestMirror, requestMirror: {backendRef: {name: web, port: 80}}}]
            backendRefs: [{name: bucket, kind: Bucket, group: example.com}]
    """,
    "mirror of a backend of an HTTPRoute": """
        apiVersion: gateway.networking.k8s.io/v1
        kind: HTTPRoute
        metadata: {name: web, namespace: shop}
        spec:
          parentRefs: [{name: public}]
          rules:
          - backendRefs:
            - kind: Bucket
              group: example.com
              name: bucket
              filters: [{type: RequestMirror, requestMirror: {backendRef: {name: web, port: 80}}}]
    """,
    "mirror of a VirtualService": """
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {name: web, namespace: shop}
        spec:
          gateways: [public]
          hosts: [example.com]
          http: [{redirect: {uri: /}, mirror: {host: web, port: {number: 80}}}]
    """,
    "mirrors of a VirtualService": """
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {name: web, namespace: shop}
        spec:
          gateways: [public]
          hosts: [example.com]
          http: [{redirect: {uri: /}, mirrors: [{destination: {host: web, port: {number: 80}}}]}]
    """,
    "delegate of a VirtualService": """
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {name: web, namespace: edge}
        spec:
          gateways: [public]
          hosts: [example.com]
          http: [{delegate: {name: web, namespace: shop}}]
        ---
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {name: web, namespace: shop}
        spec: {http: [{route: [{destination: {host: web, port: {number: 80}}}]}]}
    """,
    "VirtualService": """
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {name: web, namespace: edge}
        spec:
          gateways: [mesh, edge/public]
          hosts: [example.com]
          http: [{route: [{destination: {host: web.shop.svc.cluster.local, port: {number: 80}}}]}]
    """,
    "VirtualService by short name": """
        apiVersion: networking.istio.io/v1beta1
        kind: VirtualService
        metadata: {name: web, namespace: shop}
        spec:
          gateways: [public]
          hosts: [example.com]
          tls: [{route: [{destination: {host: web, port: {number: 443}}}]}]
    """,
    "ExternalName": """
        apiVersion: v1
        kind: Service
        metadata: {name: alias, namespace: out}
        spec: {type: ExternalName, externalName: target.shop.svc}
        ---
        apiVersion: v1
        kind: Service
        metadata: {name: target, namespace: shop}
        spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
    """,
    "ServiceMonitor": """
        apiVersion: monitoring.coreos.com/v1
        kind: ServiceMonitor
        metadata: {name: web, namespace: monitoring}
        spec:
          namespaceSelector: {matchNames: [shop]}
          selector: {matchExpressions: [{key: app, operator: In, values: [web]}]}
          endpoints: [{port: http}]
    """,
    "ServiceMonitor targetPort": """
        apiVersion: monitoring.coreos.com/v1
        kind: ServiceMonitor
        metadata: {name: web, namespace: monitoring}
        spec:
          namespaceSelector: {any: true}
          selector: {matchLabels: {app: web}}
          endpoints: [{targetPort: 8080}]
    """,
    "ServiceMonitor with a client certificate": """
        apiVersion: monitoring.coreos.com/v1
        kind: ServiceMonitor
        metadata: {name: web, namespace: shop}
        spec:
          selector: {matchLabels: {app: web}}
          endpoints:
          - port: https
            scheme: https
            tlsConfig:
              caFile: /etc/prom-certs/root-cert.pem
              certFile: /etc/prom-certs/cert-chain.pem
              keyFile: /etc/prom-certs/key.pem
              insecureSkipVerify: true
    """,
    "PodMonitor with a client certificate": """
        apiVersion: monitoring.coreos.com/v1
        kind: PodMonitor
        metadata: {name: web, namespace: shop}
        spec:
          selector: {matchLabels: {app: web}}
          podMetricsEndpoints:
          - port: https
            scheme: https
            tlsConfig:
              cert: {secret: {name: prometheus, key: tls.crt}}
              keySecret: {name: prometheus, key: tls.key}
              insecureSkipVerify: true
    """,
    "ServiceMonitor with a scrape class": """
        apiVersion: monitoring.coreos.com/v1
        kind: ServiceMonitor
        metadata: {name: web, namespace: shop}
        spec:
          selector: {matchLabels: {app: web}}
          scrapeClass: mesh
          endpoints: [{port: https, scheme: https}]
    """,
    "ServiceMonitor https": """
        apiVersion: monitoring.coreos.com/v1
        kind: ServiceMonitor
        metadata: {name: web, namespace: shop}
        spec:
          selector: {matchLabels: {app: web}}
          endpoints: [{port: https, scheme: https, tlsConfig: {insecureSkipVerify: true}}]
    """,
    "ServiceMonitor that verifies the host name": """
        apiVersion: monitoring.coreos.com/v1
        kind: ServiceMonitor
        metadata: {name: web, namespace: shop}
        spec:
          selector: {matchLabels: {app: web}}
          endpoints:
          - {port: https, scheme: https, tlsConfig: {certFile: /certs/tls.crt, keyFile: /certs/tls.key}}
    """,
    "ServiceMonitor tlsConfig without https": """
        apiVersion: monitoring.coreos.com/v1
        kind: ServiceMonitor
        metadata: {name: web, namespace: shop}
        spec:
          selector: {matchLabels: {app: web}}
          endpoints: [{port: http, tlsConfig: {certFile: /certs/tls.crt, insecureSkipVerify: true}}]
    """,
    "PodMonitor": """
        apiVersion: monitoring.coreos.com/v1
        kind: PodMonitor
        metadata: {name: web, namespace: shop}
        spec: {selector: {matchLabels: {app: web}}, podMetricsEndpoints: [{port: http}]}
    """,
    "scraped Service": """
        apiVersion: v1
        kind: Service
        metadata: {name: scraped, namespace: shop, annotations: {prometheus.io/scrape: "true"}}
        spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
    """,
    "port of a scraped Service": """
        apiVersion: v1
        kind: Service
        metadata:
          name: scraped
          namespace: shop
          annotations: {prometheus.io/scrape: "true", prometheus.io/port: "8080"}
        spec: {selector: {app: web}, ports: [{port: 443, targetPort: https}]}
    """,
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
