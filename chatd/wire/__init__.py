"""The bytes on the wire: WebSocket frames, HTTP, PROXY header, messages between nodes. Pure."""
