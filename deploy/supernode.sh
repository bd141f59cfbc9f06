#!/bin/sh
# Start a SuperNode, in the foreground: deploy/supernode.sh SITE SERVER:PORT [PORT]
# SITE is the node's own folder, with node.toml, key and ca.crt, and whatever node.toml names; PORT is one of this
# machine's, for the node's own processes alone (9094). Ctrl-C or SIGTERM stops it.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
cd "${1:?the folder of the site}"
. "$here/environment.sh"
exec flower-supernode --superlink "${2:?where the SuperLink is, as host:port}" --root-certificates ca.crt \
    --auth-supernode-private-key key --node-config node.toml --host 127.0.0.1 --port "${3:-9094}"
