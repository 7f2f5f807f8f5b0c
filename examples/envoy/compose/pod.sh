#!/bin/sh
# What holds a pod together. Its network is that of its container NAME-pod. When that one is started anew, the pod has
# another network, and the others are left in one that is cut off: only Docker can take them into the new one, by starting
# them anew. So each of them ends itself (`check`) once the new network is ready, and its restart policy does the rest.
#
#   pod.sh network              be the pod's network
#   pod.sh intercept            redirect its traffic to the sidecar
#   pod.sh after STATE COMMAND  run a command once the pod's network is in that state: `network` or `intercept`
#   pod.sh check STATE COMMAND  a health check of a container that wants that state; COMMAND looks at the rest
#   pod.sh is STATE             whether it is
set -eu
# The kernel gives the number of a network that is gone to a new one, but not that of its cable's other end. One that is cut
# off has no cable.
here="$(readlink /proc/self/ns/net) $(cat /sys/class/net/eth0/iflink 2>/dev/null || echo none)"
pod=/pods/$(hostname)
trap 'exit 0' INT TERM

say() { echo "$here" > "$pod.$1"; }
is() { [ "$here" = "$(cat "$pod.$1" 2>/dev/null)" ]; }
stay() { sleep infinity & wait $!; }

role=$1
shift
case $role in
network) say network; stay ;;
intercept) xds init "$@"; say intercept; stay ;;
after)
  until is "$1"; do sleep 0.1 & wait $!; done
  shift
  [ "$*" != sleep ] || stay
  exec "$@"
  ;;
check)
  # Nothing is said yet when all of this starts for the first time.
  [ ! -e "$pod.$1" ] || is "$1" || kill 1
  shift
  exec "$@"
  ;;
is) is "$1" ;;
esac
