"""NATS JetStream: the default broker, on a server of your own or on an embedded one."""
