#!/bin/sh
# Keeps the containers of a pod in one network, which the container NAME-pod owns. If NAME-pod restarts, it
# gets a new network. The other containers stay in the old one, without a connection, until they restart.
# Therefore their health checks (`check`) terminate them once the new network is ready, and Docker's restart
# policy starts them again.
#
#   pod.sh network              own the pod's network
#   pod.sh intercept            redirect the pod's traffic to the sidecar
#   pod.sh after STATE COMMAND  run COMMAND once this network has reached STATE (network or intercept)
#   pod.sh check STATE COMMAND  health check: terminate the container if another network has reached STATE,
#                               else run COMMAND
#   pod.sh is STATE             succeed if this network has reached STATE
set -eu
# Identifies this network. The kernel reuses inode numbers of network namespaces, so add the index of eth0's
# peer. A network without a connection has no eth0.
here="$(readlink /proc/self/ns/net) $(cat /sys/class/net/eth0/iflink 2>/dev/null || echo none)"
pod=/pods/$(hostname)
trap 'exit 0' INT TERM

mark() { echo "$here" > "$pod.$1"; }
is() { [ "$here" = "$(cat "$pod.$1" 2>/dev/null)" ]; }
stay() { sleep infinity & wait $!; }

role=$1
shift
case $role in
network) mark network; stay ;;
intercept) xds init "$@"; mark intercept; stay ;;
after)
  until is "$1"; do sleep 0.1 & wait $!; done
  shift
  [ "$*" != sleep ] || stay
  exec "$@"
  ;;
check)
  # At the first start of the pod, no network has reached the state yet.
  [ ! -e "$pod.$1" ] || is "$1" || kill 1
  shift
  exec "$@"
  ;;
is) is "$1" ;;
esac
