#!/usr/bin/env bash
# The baseline of updates_under_load.py: pull, stop the server, start it again, as `systemctl restart` does.
# Usage: restart.sh DIRECTORY PORT; DIRECTORY has clone, a clone.
set -euo pipefail
by_hand=$(dirname "$0") place=$1 port=$2

cd "$place/clone"
git pull --quiet --rebase
if [ -e "$place/server.pid" ]; then
    kill -TERM "$(cat "$place/server.pid")"
    while [ -e "$place/server.pid" ]; do # gunicorn removes it as the last thing it does
        sleep 0.01
    done
fi
rm -f "$place/booted.fifo"
mkfifo "$place/booted.fifo"
exec 4<>"$place/booted.fifo"
"$PYTHON" -m gunicorn --workers 2 --threads 4 --bind "127.0.0.1:$port" --pid "$place/server.pid" --no-control-socket \
    --config "$by_hand/booted.py" wsgi:application >>"$place/server.log" 2>&1 &
for _ in 1 2; do
    read -r -t 30 -u 4 _
done
