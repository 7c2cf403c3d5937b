"""The dashboards: panels as data, made into Grafana's JSON with its own SDK. `make dashboards` writes the package's."""
