# One image for every role, which the command says: serve, proxy (runs Envoy), init (iptables rules), token, install.
# docs/how-to/install.md says how to build and run it. No syntax directive and no mounts: every builder that there is can build it.

ARG BASE=python:3.13-slim

# hadolint ignore=DL3006
FROM ${BASE} AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

# What rarely changes comes first: builders keep it.
COPY pyproject.toml constraints.txt ./
RUN python -m venv /opt/build \
 && python -m venv --without-pip /opt/xds \
 && /opt/build/bin/pip install --constraint constraints.txt hatchling \
 && python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
      extras = p['optional-dependencies']; \
      needed = [*p['dependencies'], *(each for name in ('rest', 'conformance', 'mesh', 'demo', 'otel') for each in extras[name])]; \
      print(*(each for each in needed if not each.startswith(p['name'])), sep='\n')" > requirements.txt \
 && /opt/build/bin/pip --python /opt/xds/bin/python install --constraint constraints.txt --requirement requirements.txt \
# Compiled models of Kubernetes' objects, which are loaded one by one if at all: 40 MB.
 && find /opt/xds -path '*/kubernetes/*/models/__pycache__' -prune -exec rm -rf {} +

COPY README.md LICENSE ./
COPY examples/envoy/auto-mtls examples/envoy/auto-mtls
COPY xds xds
RUN /opt/build/bin/pip wheel --no-build-isolation --no-deps --wheel-dir wheels . \
 && /opt/build/bin/pip --python /opt/xds/bin/python install --no-deps wheels/*.whl


# hadolint ignore=DL3006
FROM ${BASE}
LABEL org.opencontainers.image.title="xds" \
      org.opencontainers.image.description="Automatic mutual TLS for Envoy sidecars: control plane, sidecar and its iptables rules" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"

# iptables: `xds init`. curl: health checks, and what the pods of the demo ask each other with.
# The distribution's stable release is what pins them.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends curl iptables \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* \
# The user whose traffic `xds init` leaves alone: the sidecar is never intercepted itself.
 && groupadd --gid 1337 xds \
 && useradd --uid 1337 --gid 1337 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin xds \
 && install --directory --owner 1337 --group 1337 --mode 700 /var/lib/xds

COPY --from=build /opt/xds /opt/xds
ENV PATH=/opt/xds/bin:$PATH PYTHONUNBUFFERED=1
USER 1337:1337

# What runs is the control plane, or a sidecar; what is neither says otherwise where it is run.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s \
  CMD ["sh", "-c", "curl -fso /dev/null http://127.0.0.1:15014/ready || curl -fso /dev/null http://127.0.0.1:15021/healthz/ready"]
ENTRYPOINT ["xds"]
CMD ["--help"]
