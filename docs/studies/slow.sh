#!/bin/sh
# Runs a command on a loopback that carries no more than RATE, in a network namespace of its own. Needs root.
# sh docs/studies/slow.sh RATE BURST COMMAND...
set -e
[ $# -gt 2 ] || { sed -n 3p "$0" >&2; exit 2; }
RATE=$1 BURST=$2
shift 2
export RATE BURST
exec unshare --net sh -ec 'ip link set lo up; tc qdisc add dev lo root tbf rate "$RATE" burst "$BURST" latency 500ms; exec "$@"' slow "$@"
