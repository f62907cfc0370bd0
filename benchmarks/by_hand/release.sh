#!/usr/bin/env bash
# The baseline of push_to_page.py, release mode: what a person would write to deploy the tip into a directory of its own.
# Usage: release.sh DIRECTORY LISTENER; DIRECTORY has mirror.git, a bare clone.
set -euo pipefail
by_hand=$(dirname "$0") place=$1 listener=$2

export GIT_DIR=$place/mirror.git
git fetch --quiet --no-tags origin +refs/heads/main:refs/heads/main
revision=$(git rev-parse refs/heads/main)
mkdir -p "$place/releases/$revision"
rm -f "$place/index"
GIT_INDEX_FILE=$place/index git --work-tree="$place/releases/$revision" read-tree --reset -u "$revision"
unset GIT_DIR

cd "$place/releases/$revision"
. "$by_hand/swap.sh"
