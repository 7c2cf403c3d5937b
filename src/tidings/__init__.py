"""Events between microservices: none lost, none applied twice, each one traceable."""
