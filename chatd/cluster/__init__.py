"""Several nodes as one: pub/sub, leases, presence and limits over Redis; the change feed."""
