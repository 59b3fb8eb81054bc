"""The back ends of a cluster: the log and the counts feed in Kafka, the store in Cassandra."""
