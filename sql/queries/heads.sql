-- The committed heads of conversations ($1): after a batch whose outcome is unknown, or where
-- another node may have written. Index scan on the primary key.
SELECT v.id, v.head, v.na, v.nb, (extract(epoch FROM v.last_ts) * 1000)::bigint, v.a, v.b FROM conversations v WHERE v.id = ANY ($1::bigint[])
