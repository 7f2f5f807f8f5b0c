#!/usr/bin/env bash
# Start the control plane, both applications and their sidecars. Ctrl-C stops all of them. Needs xds, envoy, python3
# and curl on PATH. Logs are in run/.
set -eu
cd "$(dirname "$0")"
: "${XDS_ADDRESS:=127.0.0.1:15010}" "${ADMIN_ADDRESS:=127.0.0.1:15014}"

for address in "$XDS_ADDRESS" "$ADMIN_ADDRESS" 127.31.0.{1,2,101,102}:8080 127.31.0.{1,2}:15000; do
  if (: < "/dev/tcp/${address%:*}/${address##*:}") 2> /dev/null; then
    echo "$address is in use: stop what listens there, such as another run.sh" >&2
    echo "(XDS_ADDRESS and ADMIN_ADDRESS choose the addresses of the control plane)" >&2
    exit 1
  fi
done

mkdir -p run
trap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

xds serve --manifests mesh/ --xds-address "$XDS_ADDRESS" --admin-address "$ADMIN_ADDRESS" > run/control-plane.log 2>&1 &

python3 app.py backend 127.31.0.102 8080 > run/backend.log 2>&1 &
python3 app.py frontend 127.31.0.101 8080 http://backend.shop http://127.31.0.1:15002 > run/frontend.log 2>&1 &

for pod in frontend-0 backend-0; do
  xds bootstrap "$pod.shop" --manifests mesh/ --xds-address "$XDS_ADDRESS" > "run/$pod.json"
  # Without --disable-hot-restart, only one Envoy could run on this machine.
  envoy -c "run/$pod.json" --disable-hot-restart --concurrency 1 --drain-strategy immediate --drain-time-s 5 \
    > "run/$pod.log" 2>&1 &
done

for _ in $(seq 300); do
  if curl --silent --fail --output run/first-response.json http://127.31.0.1:8080; then
    echo "ready: curl http://127.31.0.1:8080"
    echo "page:  http://$ADMIN_ADDRESS/"
    wait -n || true
    echo "a process has ended: see run/*.log" >&2
    exit 1
  fi
  sleep 0.2
done
echo "the mesh is not ready after 60 s: see run/*.log" >&2
exit 1
