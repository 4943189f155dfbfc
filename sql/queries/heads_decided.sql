-- The heads of those conversations of $1 that no transaction is writing to; the others have no row.
-- A batch of unknown outcome may still be committing, at a standby that does not answer or a disk
-- that hangs; until that is over, its head cannot be known. The locks are released at once and need
-- not be durable. Index scan on the primary key.
SELECT v.id, v.head, v.na, v.nb, (extract(epoch FROM v.last_ts) * 1000)::bigint, v.a, v.b
FROM set_config('synchronous_commit', 'off', true) CROSS JOIN conversations v
WHERE v.id = ANY ($1::bigint[]) ORDER BY v.id FOR NO KEY UPDATE OF v SKIP LOCKED
