-- How far the logs of conversations ($1) go, of those that no transaction is writing to: the others come in no row. A batch of unknown outcome may still
-- be committing, at a standby that does not answer or a disk that hangs; until it is over, a head that is read says nothing. The locks are let go at
-- once and need not be durable. Index scan on the primary key.
SELECT v.id, v.head, v.na, v.nb, (extract(epoch FROM v.last_ts) * 1000)::bigint, v.a, v.b
FROM set_config('synchronous_commit', 'off', true) CROSS JOIN conversations v
WHERE v.id = ANY ($1::bigint[]) ORDER BY v.id FOR NO KEY UPDATE OF v SKIP LOCKED
