-- What a hello needs. First three columns: the new mark (the oldest transaction still running in this very snapshot: whatever it or a later one
-- changes is >= it), when the server was started in us, and the time in ms; they come also when no conversation does. Then the user's ($1)
-- conversations that have entries, in order of id from after $3, at most $4, and whether they changed since the mark $2 of a server started at $7;
-- $5: also those that did not. A mark of an earlier start is taken for 100,000 transactions older, one of the future for none: chatd/postgres/mark.py.
-- >= because a transaction that was running when the mark was taken may have changed a row since: repeats are harmless, a miss is not.
-- Index scans on conversations_pair and conversations_b; reads all rows of the user (cheaper than an index that every send would have to write).
WITH asked AS MATERIALIZED (
    SELECT n.snapshot, n.started,
        (CASE WHEN $2::bigint > pg_snapshot_xmax(n.snapshot)::text::bigint THEN 0
            WHEN $7::bigint = n.started THEN $2::bigint
            ELSE greatest($2::bigint - 100000, 0) END)::text::xid8 AS since
    FROM (SELECT pg_current_snapshot() AS snapshot, (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint AS started) n
), mine AS MATERIALIZED (
    SELECT * FROM conversations c WHERE c.a = $1 AND c.head > 0
    UNION ALL
    (SELECT * FROM conversations c WHERE c.b >= $1 AND c.b <= $1 AND c.a <> c.b AND c.head > 0 ORDER BY c.b)
), listed AS (
    SELECT v.*, k.a_delivered, k.a_read, k.a_read_n, k.b_delivered, k.b_read, k.b_read_n,
        (v.xid >= a.since OR coalesce(k.xid >= a.since, false)) AS changed
    FROM asked a CROSS JOIN mine v LEFT JOIN LATERAL (SELECT * FROM cursors c WHERE c.conv = v.id LIMIT 1) k ON true
    WHERE v.id > $3::bigint
)
SELECT pg_snapshot_xmin(s.snapshot)::text::bigint, s.started, (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
    v.id, v.a, v.b, v.head, v.floor, v.na, v.nb, (extract(epoch FROM v.last_ts) * 1000)::bigint,
    coalesce(v.a_delivered, 0), coalesce(v.a_read, 0), greatest(v.a_read_n, v.b_gone),
    coalesce(v.b_delivered, 0), coalesce(v.b_read, 0), greatest(v.b_read_n, v.a_gone), v.changed
FROM asked s LEFT JOIN (
    SELECT * FROM listed WHERE changed OR $5::boolean OR id = ANY ($6::bigint[]) ORDER BY id LIMIT $4
) v ON true
ORDER BY v.id
