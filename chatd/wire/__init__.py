"""Bytes on the wire, parsed and made:

WebSocket frames, HTTP, the PROXY header, what nodes tell each other. Pure.
"""
