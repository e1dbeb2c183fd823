#!/bin/sh
# nginx as a peer to measure beside: no tickets, no session cache, a static `{}` to every POST (a static node key to an
# enrolment), on 127.0.0.1.
#
# usage: nginx.sh PORT CERT KEY [WORKERS [KEEPALIVE_SECONDS [TLS]]]
#
# WORKERS (1) is a number or `auto`. KEEPALIVE_SECONDS (0: every answer closes) lets connections stay, for any number of
# requests. TLS is `both`, `1.2` or `1.3`. Prints its directory and pid, and becomes nginx: end it with `kill PID`, then
# remove the directory.
set -eu

[ $# -ge 3 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 64; }
port=$1
cert=$(readlink -f "$2")
key=$(readlink -f "$3")
workers=${4:-1}
keepalive=${5:-0}
case ${6:-both} in
    both) protocols="TLSv1.2 TLSv1.3" ;;
    1.2) protocols="TLSv1.2" ;;
    1.3) protocols="TLSv1.3" ;;
    *) echo "nginx.sh: TLS is both, 1.2 or 1.3" >&2; exit 64 ;;
esac
dir=$(mktemp -d "${TMPDIR:-/tmp}/peer-nginx.XXXXXX")
chmod 755 "$dir"

cat >"$dir/nginx.conf" <<CONF
daemon off;
worker_processes $workers;
pid $dir/nginx.pid;
error_log $dir/error.log warn;
worker_rlimit_nofile $(ulimit -n);
events {
    worker_connections 19000;
}
http {
    access_log off;
    server_tokens off;
    client_body_temp_path $dir/body;
    proxy_temp_path $dir/proxy;
    fastcgi_temp_path $dir/fastcgi;
    uwsgi_temp_path $dir/uwsgi;
    scgi_temp_path $dir/scgi;
    client_max_body_size 16m;
    keepalive_timeout ${keepalive}s;
    keepalive_requests 1000000000;
    keepalive_time 24h;
    tcp_nodelay on;
    server {
        listen 127.0.0.1:$port ssl reuseport backlog=4096;
        ssl_certificate $cert;
        ssl_certificate_key $key;
        ssl_protocols $protocols;
        ssl_ecdh_curve X25519:prime256v1;
        ssl_session_cache off;
        ssl_session_tickets off;
        location ~ /enroll$ {
            default_type application/json;
            return 200 '{"node_key":"the-same-key-for-every-host-0001"}';
        }
        location / {
            default_type application/json;
            return 200 '{}';
        }
    }
}
CONF

echo "dir=$dir pid=$$"
exec nginx -p "$dir" -e "$dir/error.log" -c "$dir/nginx.conf"
