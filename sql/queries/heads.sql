-- Heads of conversations, after a batch whose outcome is unknown.
SELECT v.id, v.head FROM conversations v WHERE v.id = ANY ($1::bigint[])
