#!/bin/sh
# Start the SuperLink, in the foreground: deploy/superlink.sh KEYS [HOST] [PORT]
# KEYS is the folder that `python -m fedsiege.flower.certificates server KEYS --host NAME` wrote; HOST is what it listens
# to (127.0.0.1; 0.0.0.0 for every network of the machine). Ctrl-C or SIGTERM stops it. Registered nodes are kept in KEYS.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
keys=${1:?the folder with server.crt, server.key and ca.crt}
. "$here/environment.sh"
exec flower-superlink --host "${2:-127.0.0.1}" --port "${3:-8000}" \
    --ssl-certfile "$keys/server.crt" --ssl-keyfile "$keys/server.key" --ssl-ca-certfile "$keys/ca.crt" \
    --enable-supernode-auth --disable-runtime-dependency-installation --database "$keys/superlink.db"
