"""GitHub's webhooks as typed events, and two handlers that count. `README.md` says how to run it."""
