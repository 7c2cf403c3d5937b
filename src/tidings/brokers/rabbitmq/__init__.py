"""RabbitMQ: quorum queues behind a topic exchange for each stream."""
