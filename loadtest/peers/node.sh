#!/bin/sh
# node's https module as a peer to measure beside: no tickets, a static `{}` to every POST (a static node key to an
# enrolment), on 127.0.0.1.
#
# usage: node.sh PORT CERT KEY [WORKERS [KEEPALIVE_SECONDS [TLS]]]
#
# WORKERS (1) above 1 are processes of its cluster module. KEEPALIVE_SECONDS (0: every answer closes) lets connections
# stay. TLS is `both`, `1.2` or `1.3`. Prints its pid, and becomes node: end it with `kill PID`.
set -eu

[ $# -ge 3 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 64; }
echo "pid=$$"
exec node "$(dirname "$0")/node.js" "$1" "$2" "$3" "${4:-1}" "${5:-0}" "${6:-both}"
