-- What a hello needs. First two columns: the new mark (the oldest transaction still running in this very snapshot: whatever it or a later one
-- changes is >= it) and the time in ms; they come also when no conversation does. Then the user's ($1) conversations that have entries, in order of
-- id from after $3, at most $4, and whether they changed since the mark $2; $5: also those that did not.
-- >= because a transaction that was running when the mark was taken may have changed a row since: repeats are harmless, a miss is not.
-- Index scans on conversations_pair and conversations_b; reads all rows of the user (cheaper than an index that every send would have to write).
WITH mine AS MATERIALIZED (
    SELECT * FROM conversations c WHERE c.a = $1 AND c.head > 0
    UNION ALL
    SELECT * FROM conversations c WHERE c.b = $1 AND c.a <> c.b AND c.head > 0
), listed AS (
    SELECT v.*, k.a_delivered, k.a_read, k.a_read_n, k.b_delivered, k.b_read, k.b_read_n,
        (v.xid >= $2::text::xid8 OR coalesce(k.xid >= $2::text::xid8, false)) AS changed
    FROM mine v LEFT JOIN cursors k ON k.conv = v.id
    WHERE v.id > $3::bigint
)
SELECT pg_snapshot_xmin(s.s)::text, (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
    v.id, v.a, v.b, v.head, v.floor, v.na, v.nb, (extract(epoch FROM v.last_ts) * 1000)::bigint,
    coalesce(v.a_delivered, 0), coalesce(v.a_read, 0), coalesce(v.a_read_n, 0),
    coalesce(v.b_delivered, 0), coalesce(v.b_read, 0), coalesce(v.b_read_n, 0), v.changed
FROM pg_current_snapshot() AS s (s) LEFT JOIN (
    SELECT * FROM listed WHERE changed OR $5::boolean OR id = ANY ($6::bigint[]) ORDER BY id LIMIT $4
) v ON true
ORDER BY v.id
