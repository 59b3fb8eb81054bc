#!/usr/bin/env bash
# Records a follow, reads the count that includes it, lists the followers, and shows what a refusal says.
set -euo pipefail

writer=${WATERTOWER_WRITE_TARGET:-127.0.0.1:50051}
reader=${WATERTOWER_READ_TARGET:-127.0.0.1:50052}
attempts_max=5

# grpcurl knows no service config. It ends with 64 + the status: 72 is RESOURCE_EXHAUSTED, 78 UNAVAILABLE; after these the identical
# call is repeated. A person at a terminal can wait a second, which is more than the service asks for by default.
call() { # address method request
    local attempt code
    for ((attempt = 1; ; attempt++)); do
        code=0
        grpcurl -plaintext -max-time 10 -emit-defaults -d "$3" "$1" "watertower.v1.$2" || code=$?
        if ((attempt == attempts_max || code != 72 && code != 78)); then return "$code"; fi
        sleep 1
    done
}

field() { sed -n 's/^ *"'"$1"'": "\(.*\)",\{0,1\}$/\1/p'; } # the values of a string field

# The moment of the press: taken once, before the first attempt, so that every attempt sends the identical event.
pressed=$(date -u +%Y-%m-%dT%H:%M:%S.%NZ)
follow='{"actor": "ann", "kind": "KIND_FOLLOW", "subject": "bob", "state": "STATE_ACTIVE", "occurred_at": "'$pressed'"}'
token=$(call "$writer" EngagementWriter/RecordEvents '{"events": ['"$follow"']}' | field write_token)
echo "recorded: ann follows bob"

# min_position: the answer waits until it includes the write.
fresh='"min_position": "'${token:?}'"'
call "$reader" EngagementReader/GetCounts '{"entity": "bob", "metrics": ["METRIC_FOLLOWERS"], '"$fresh"'}'

page=
while :; do
    list=$(call "$reader" EngagementReader/ListActors \
        '{"subject": "bob", "kind": "KIND_FOLLOW", "page_size": 2, "page_token": "'"$page"'", '"$fresh"'}')
    field actor <<<"$list" | sed 's/^/follower: /'
    page=$(field next_page_token <<<"$list")
    [[ -n $page ]] || break
done

# Nobody can follow themselves: a refusal that no retry changes. grpcurl prints its details.
call "$writer" EngagementWriter/RecordEvents '{"events": ['"${follow/bob/ann}"']}' 2>&1 || echo "ended with $?"
