#!/usr/bin/env bash
# The baseline of push_to_page.py, in-place mode: what a person would write to update a clone and serve it.
# Usage: in_place.sh DIRECTORY LISTENER; DIRECTORY has clone, a clone.
set -euo pipefail
by_hand=$(dirname "$0") place=$1 listener=$2

cd "$place/clone"
git pull --quiet --rebase
. "$by_hand/swap.sh"
