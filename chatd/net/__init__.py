"""Clients' connections: the listener, one connection, access log, plain HTTP, removed keys."""
