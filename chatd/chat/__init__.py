"""What chatd does for a session's requests: send, deliver, resync, presence.

It knows other nodes only by the protocols of `ports`.
"""
