-- Which conversations changed since the marks of many users, found by one pass over all of them
-- (chatd/postgres/sweep.py): 0.1 us a row, where a look by index costs 6. The first row has the
-- snapshot, the start of the server in us, the time in ms, and up to where the log is on disk, as in
-- list_changed.sql. Then at most $4 conversations of the users $1 that have entries and that a
-- transaction changed which is in or after the oldest of their marks ($2 xids, $3 starts of the
-- server): id, a, b, and the transaction that counts for each side. One whose log and whose cursors
-- changed comes twice. The caller compares with each user's own mark.
-- For whom what counts as a change, and how old a mark of an earlier start is: list_changed.sql.
-- Reads both tables from end to end, once: no index has a column that a send changes. The users are
-- looked up in a hash (IN beside OR is no join), and moved cursors by the primary key.
WITH asked AS MATERIALIZED (
    SELECT pg_current_snapshot() AS snapshot, (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint AS started
), oldest AS MATERIALIZED (
    SELECT min(CASE WHEN m.xid > pg_snapshot_xmax(a.snapshot)::text::bigint THEN 0
        WHEN m.started = a.started THEN m.xid
        ELSE greatest(m.xid - 100000, 0) END)::text::xid8 AS since
    FROM asked a CROSS JOIN unnest($2::bigint[], $3::bigint[]) AS m (xid, started)
), changed AS (
    SELECT c.id, c.a, c.b, c.xid AS a_xid, c.xid AS b_xid FROM conversations c
    WHERE c.xid >= (SELECT since FROM oldest) AND c.head > 0
        AND (c.a IN (SELECT unnest($1::text[])) OR c.b IN (SELECT unnest($1::text[])))
    UNION ALL
    SELECT v.id, v.a, v.b,
        CASE WHEN (v.na > 0 AND v.nb > 0) OR v.a = v.b THEN k.xid ELSE coalesce(k.a_xid, k.xid) END,
        CASE WHEN (v.na > 0 AND v.nb > 0) OR v.a = v.b THEN k.xid ELSE coalesce(k.b_xid, k.xid) END
    FROM cursors k CROSS JOIN LATERAL (SELECT * FROM conversations c WHERE c.id = k.conv LIMIT 1) v
    WHERE k.xid >= (SELECT since FROM oldest) AND v.head > 0
        AND (v.a IN (SELECT unnest($1::text[])) OR v.b IN (SELECT unnest($1::text[])))
)
SELECT snapshot::text, started, (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms,
    (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint AS position,
    NULL::bigint AS id, NULL::text AS a, NULL::text AS b, NULL::bigint AS a_xid, NULL::bigint AS b_xid
FROM asked
UNION ALL
(SELECT NULL, NULL, NULL, NULL, id, a, b, a_xid::text::bigint, b_xid::text::bigint FROM changed LIMIT $4::bigint)
