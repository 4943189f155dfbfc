"""chatd: a real-time 1:1 chat server. Durable ordered logs in PostgreSQL, one WebSocket per device.

Start reading at `server.py` (the list of parts) or `docs/design.md` (why it is so).
"""

__version__ = "0.1.0"
