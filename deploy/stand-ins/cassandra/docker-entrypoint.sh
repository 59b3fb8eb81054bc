#!/bin/bash
# env as in the official image: CASSANDRA_{SEEDS,CLUSTER_NAME,NUM_TOKENS,LISTEN_ADDRESS,BROADCAST_ADDRESS,RPC_ADDRESS,
# BROADCAST_RPC_ADDRESS,ENDPOINT_SNITCH,DC,RACK}, MAX_HEAP_SIZE + HEAP_NEWSIZE (both or none), JVM_OPTS, JVM_EXTRA_OPTS
set -e
[[ $# -eq 0 || $1 == -* ]] && set -- cassandra -f
[[ $1 == cassandra ]] || exec "$@"
C=/etc/cassandra
if [[ $(id -u) == 0 ]]; then
  chown -R cassandra:cassandra /var/lib/cassandra /var/log/cassandra $C
  exec setpriv --reuid=cassandra --regid=cassandra --clear-groups "$0" "$@"
fi
ip=$(ip -4 -o addr show scope global | awk '{sub(/\/.*/, "", $4); print $4; exit}'); ip=${ip:-127.0.0.1}
: "${CASSANDRA_RPC_ADDRESS=0.0.0.0}"
[[ ${CASSANDRA_LISTEN_ADDRESS:-auto} == auto ]] && CASSANDRA_LISTEN_ADDRESS=$ip
[[ ${CASSANDRA_BROADCAST_ADDRESS:-$CASSANDRA_LISTEN_ADDRESS} == auto ]] && CASSANDRA_BROADCAST_ADDRESS=$ip
: "${CASSANDRA_BROADCAST_ADDRESS:=$CASSANDRA_LISTEN_ADDRESS}" "${CASSANDRA_BROADCAST_RPC_ADDRESS:=$CASSANDRA_BROADCAST_ADDRESS}"
: "${CASSANDRA_SEEDS:=$CASSANDRA_BROADCAST_ADDRESS}"
set_key() {  # FILE KEY VALUE: drop the old line, commented or not, and append; keeps the inode (bind mounts)
  local rest; rest=$(grep -vE "^(# *)?$2[:=]" "$1"); printf '%s\n%s\n' "$rest" "$3" > "$1"
}
for key in broadcast_address broadcast_rpc_address cluster_name endpoint_snitch listen_address num_tokens rpc_address; do
  var=CASSANDRA_${key^^}; [[ -z ${!var-} ]] || set_key $C/cassandra.yaml $key "$key: ${!var}"
done
yaml=$(awk -v s="$CASSANDRA_SEEDS" '/^ +- seeds:/ {sub(/seeds:.*/, ""); print $0 "seeds: \"" s "\""; next} {print}' $C/cassandra.yaml)
printf '%s\n' "$yaml" > $C/cassandra.yaml
[[ -z ${CASSANDRA_DC-} ]] || set_key $C/cassandra-rackdc.properties dc "dc=$CASSANDRA_DC"
[[ -z ${CASSANDRA_RACK-} ]] || set_key $C/cassandra-rackdc.properties rack "rack=$CASSANDRA_RACK"
# shellcheck disable=SC2086 # each is several words
exec java -Xms"${MAX_HEAP_SIZE:-1G}" -Xmx"${MAX_HEAP_SIZE:-1G}" -XX:+UseG1GC -XX:+ExitOnOutOfMemoryError @$C/jvm17.args \
  -Dcassandra.config=file://$C/cassandra.yaml -Dlogback.configurationFile=$C/logback.xml -Dcassandra.storagedir=/var/lib/cassandra \
  -Dcassandra.jmx.local.port=7199 -Dcassandra-foreground=yes ${JVM_OPTS-} ${JVM_EXTRA_OPTS-} \
  -cp "$C:/opt/cassandra/lib/*" org.apache.cassandra.service.CassandraDaemon
