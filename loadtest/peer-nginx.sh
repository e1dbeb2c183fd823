#!/bin/sh
# Starts nginx as a peer to measure beside: TLS 1.3, no tickets, no keep-alive, a static `{}` to every POST
# (a static node key to an enrolment).
#
# usage: peer-nginx.sh PORT CERT KEY [WORKERS [KEEPALIVE_SECONDS]]
#
# Prints the directory it works in and the pid of the master process; end it with `kill PID` and remove the directory.
# WORKERS is a number or `auto` (default 1). KEEPALIVE_SECONDS other than 0 lets idle connections stay, for `idle`.
set -eu

[ $# -ge 3 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 64; }
port=$1
cert=$(readlink -f "$2")
key=$(readlink -f "$3")
workers=${4:-1}
keepalive=${5:-0}
dir=$(mktemp -d "${TMPDIR:-/tmp}/peer-nginx.XXXXXX")
chmod 755 "$dir"

cat >"$dir/nginx.conf" <<CONF
worker_processes $workers;
pid $dir/nginx.pid;
error_log $dir/error.log warn;
worker_rlimit_nofile $(ulimit -n);
events {
    worker_connections 15000;
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
    tcp_nodelay on;
    server {
        listen $port ssl reuseport backlog=4096;
        ssl_certificate $cert;
        ssl_certificate_key $key;
        ssl_protocols TLSv1.3;
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

nginx -p "$dir" -c "$dir/nginx.conf"
tries=0
until [ -s "$dir/nginx.pid" ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || { cat "$dir/error.log" >&2; exit 70; }
    sleep 0.05
done
echo "dir=$dir pid=$(cat "$dir/nginx.pid")"
