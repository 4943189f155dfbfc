"""Redis as one server, Sentinels or a Cluster. No other package imports redis-py."""
