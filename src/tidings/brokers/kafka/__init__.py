"""Apache Kafka: a stream is a topic, a position is a consumer group, a key has its partition."""
