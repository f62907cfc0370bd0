# Read by release.sh and in_place.sh, in the directory to serve: starts a gunicorn on the inherited socket, waits until
# both of its workers have booted, and ends the one before it.
# $place: the directory of the baseline. $listener: the descriptor of the socket. $PYTHON: the interpreter.

fifo=$place/booted.fifo
rm -f "$fifo"
mkfifo "$fifo"
exec 3<&"$listener" 4<>"$fifo"
"$PYTHON" -m gunicorn --workers 2 --bind "fd://3" --no-control-socket --config "$by_hand/booted.py" \
    wsgi:application >>"$place/server.log" 2>&1 &
new=$!
for _ in 1 2; do
    read -r -t 30 -u 4 _
done
if [ -e "$place/server.pid" ]; then
    kill -TERM "$(cat "$place/server.pid")"
fi
echo "$new" >"$place/server.pid"
