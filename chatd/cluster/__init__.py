"""What a node has only among others: pub/sub and leases over Redis, the change feed, limits that
all nodes share.
"""
