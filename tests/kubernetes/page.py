"""The commands of Istio's task *Automatic mutual TLS*, as printed, and parsers for their output."""

from __future__ import annotations

from collections.abc import Mapping

from xds.demo import tour
from xds.demo.play import Answers, Pair

INSTALL = r"""
istioctl manifest apply --set profile=demo \
  --set values.global.mtls.auto=true \
  --set values.global.mtls.enabled=false
"""
REINSTALL = INSTALL.replace("auto=true", "auto=false")
"""The installation without automatic mutual TLS, from the task's summary."""

DEPLOY = (
    r"""
kubectl create ns full
kubectl apply -f <(istioctl kube-inject -f samples/httpbin/httpbin.yaml) -n full
kubectl apply -f <(istioctl kube-inject -f samples/sleep/sleep.yaml) -n full
""",
    r"""
kubectl create ns partial
kubectl apply -f <(istioctl kube-inject -f samples/httpbin/httpbin.yaml) -n partial
cat <<EOF | kubectl apply -n partial -f -
apiVersion: apps/v1
kind: Deployment
metadata:
  name: httpbin-nosidecar
spec:
  replicas: 1
  selector:
    matchLabels:
      app: httpbin
  template:
    metadata:
      labels:
        app: httpbin
        version: nosidecar
    spec:
      containers:
      - image: docker.io/kennethreitz/httpbin
        imagePullPolicy: IfNotPresent
        name: httpbin
        ports:
        - containerPort: 80
EOF
""",
    r"""
kubectl create ns legacy
kubectl apply -f samples/httpbin/httpbin.yaml -n legacy
kubectl apply -f samples/sleep/sleep.yaml -n legacy
""",
    r"""
kubectl apply -f <(istioctl kube-inject -f samples/sleep/sleep.yaml) -n full
kubectl apply -f samples/sleep/sleep.yaml -n legacy
""",
)

PODS = r"""
kubectl get pods -n full
kubectl get pods -n partial
kubectl get pods -n legacy
"""
READY = {"full": ["2/2", "2/2"], "partial": ["1/1", "2/2"], "legacy": ["1/1", "1/1"]}
"""Namespace -> the column READY of its pods, sorted."""

POLICIES = r"""
kubectl get policies.authentication.istio.io --all-namespaces
kubectl get meshpolicies -o yaml | grep ' mode'
"""
RULES = r"""
kubectl get destinationrules.networking.istio.io --all-namespaces -o yaml | grep "host:"
"""

FIRST_CHECK = r"""
kubectl exec $(kubectl get pod -l app=sleep -n full -o jsonpath={.items..metadata.name}) -c sleep -n full -- curl http://httpbin.full:8000/headers  -s  -w "response %{http_code}\n" | egrep -o 'URI\=spiffe.*sa/[a-z]*|response.*$'
"""  # noqa: E501

EVERY_PAIR = r"""
for from in "full" "legacy"; do for to in "full" "partial" "legacy"; do echo "sleep.${from} to httpbin.${to}";kubectl exec $(kubectl get pod -l app=sleep -n ${from} -o jsonpath={.items..metadata.name}) -c sleep -n ${from} -- curl http://httpbin.${to}:8000/headers  -s  -w "response code: %{http_code}\n" | egrep -o 'URI\=spiffe.*sa/[a-z]*|response.*$';  echo -n "\n"; done; done
"""  # noqa: E501

TEN_TIMES_PARTIAL = r"""
for i in `seq 1 10`; do kubectl exec $(kubectl get pod -l app=sleep -n full -o jsonpath={.items..metadata.name}) -c sleep -nfull  -- curl http://httpbin.partial:8000/headers  -s  -w "response code: %{http_code}\n" | egrep -o 'URI\=spiffe.*sa/[a-z]*|response.*$';  echo -n "\n"; done
"""  # noqa: E501

STRICT = r"""
cat <<EOF | kubectl apply -n full -f -
apiVersion: "authentication.istio.io/v1alpha1"
kind: "Policy"
metadata:
  name: "httpbin"
spec:
  targets:
  - name: httpbin
  peers:
  - mtls: {}
EOF
"""
PLAINTEXT = r"""
cat <<EOF | kubectl apply -n full -f -
apiVersion: "authentication.istio.io/v1alpha1"
kind: "Policy"
metadata:
  name: "httpbin"
spec:
  targets:
  - name: httpbin
EOF
"""
OVERRIDE = r"""
cat <<EOF | kubectl apply -n full -f -
apiVersion: "networking.istio.io/v1alpha3"
kind: "DestinationRule"
metadata:
  name: "httpbin-full-mtls"
spec:
  host: httpbin.full.svc.cluster.local
  trafficPolicy:
    tls:
      mode: ISTIO_MUTUAL
EOF
"""
UNDO = r"""
kubectl delete policies.authentication.istio.io httpbin -n full
kubectl delete destinationrules.networking.istio.io httpbin-full-mtls -n full
"""
"""Not part of the task, whose clean-up deletes the namespaces."""

CLEAN_UP = r"""
kubectl delete ns full partial legacy
"""

STEPS: Mapping[str, str] = {
    "initial check": "",
    "PERMISSIVE": "",
    "migration": "",
    "STRICT": STRICT,
    "plaintext policy": PLAINTEXT,
    "DestinationRule override": OVERRIDE,
    "clean-up": UNDO,
    "auto=false": REINSTALL,
    "auto=false, STRICT": STRICT,
}
"""Step of xds.demo.play -> commands typed before its table is checked."""


def answers(output: str) -> Answers:
    """Parse the output of one pair's commands."""
    return tour.answers(_plain(output))


def table(output: str) -> Mapping[Pair, Answers]:
    """Parse the output of the command for every pair."""
    return tour.table(_plain(output))


def _plain(output: str) -> str:
    # bash's `echo -n "\n"` prints just that.
    return output.replace("\\n", "\n")
