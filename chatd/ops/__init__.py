"""For the operator: admin port, `chatd doctor`, `nodes`, `user show`, `keys`, worker processes,
sd_notify.
"""
