"""A drill of the alerts: one thing after the other breaks, and a real Prometheus tells of that one and no other."""
