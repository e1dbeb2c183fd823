#!/bin/sh
# HAProxy as a peer to measure beside: no tickets, no session cache, a static `{}` to every POST (a static node key to an
# enrolment), on 127.0.0.1.
#
# usage: haproxy.sh PORT CERT KEY [WORKERS [KEEPALIVE_SECONDS [TLS]]]
#
# WORKERS (1) is its number of threads. KEEPALIVE_SECONDS (0: every answer closes) lets connections stay. TLS is `both`,
# `1.2` or `1.3`. Prints its directory and pid, and becomes HAProxy: end it with `kill PID`, then remove the directory.
set -eu

[ $# -ge 3 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 64; }
port=$1
workers=${4:-1}
keepalive=${5:-0}
case ${6:-both} in
    both) versions="ssl-min-ver TLSv1.2" ;;
    1.2) versions="ssl-min-ver TLSv1.2 ssl-max-ver TLSv1.2" ;;
    1.3) versions="ssl-min-ver TLSv1.3" ;;
    *) echo "haproxy.sh: TLS is both, 1.2 or 1.3" >&2; exit 64 ;;
esac
if [ "$keepalive" = 0 ]; then
    reuse="option httpclose"
    keepalive=1
else
    reuse="option http-keep-alive"
fi
dir=$(mktemp -d "${TMPDIR:-/tmp}/peer-haproxy.XXXXXX")
# Certificate and key stand in one file here.
(umask 077 && cat "$2" "$3" >"$dir/identity.pem")

cat >"$dir/haproxy.cfg" <<CONF
global
    # Its own sum counts two descriptors a connection; without a backend there is one.
    no strict-limits
    maxconn 19000
    nbthread $workers
    ssl-default-bind-options $versions no-tls-tickets
    ssl-default-bind-curves X25519:P-256
    tune.ssl.cachesize 0
    tune.ssl.default-dh-param 2048
defaults
    mode http
    maxconn 19000
    timeout client 60s
    timeout http-request 20s
    timeout http-keep-alive ${keepalive}s
    timeout connect 5s
    timeout server 20s
    $reuse
frontend agents
    bind 127.0.0.1:$port ssl crt $dir/identity.pem alpn http/1.1 backlog 4096
    http-request return status 200 content-type application/json string "{\"node_key\":\"the-same-key-for-every-host-0001\"}" if { path_end /enroll }
    http-request return status 200 content-type application/json string "{}"
CONF

echo "dir=$dir pid=$$"
exec haproxy -db -f "$dir/haproxy.cfg"
