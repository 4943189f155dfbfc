"""Clients' connections: the listener, one connection, where it comes from, what is refused."""
