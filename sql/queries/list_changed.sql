-- A page of the listing of a hello. The first five columns come also without a conversation: the
-- snapshot (its xmin is the new mark: whatever the oldest transaction still running or a later one
-- changes is >= it), the start of the server in us, the time in ms, the name of the last participant
-- looked at if there may be more, and up to where the log is on disk (bytes from the beginning of
-- WAL): what a client has seen before this hello is not beyond that.
-- Then the conversations of user $1 that have entries, in order of the other participant's name
-- from after $3, and whether they changed since the mark $2 of a server started at $7. $5: also
-- those that did not change; those with an id in $6 always come. $4 are looked at, so a page may
-- have none.
-- Until both have sent, the other's cursors are no change: a listing would show that they moved
-- (docs/protocol.md, section 6). A mark of an earlier start counts as 100,000 transactions older,
-- one of the future as none: chatd/postgres/mark.py.
-- >= because a transaction that was running when the mark was made may have changed a row since: a
-- repeat is harmless, a miss is not.
-- Index scans on conversations_pair and conversations_b_a, each from where the page begins, $4 rows
-- each; then cursors by key. An index by xid would have to be written by every send.
WITH asked AS MATERIALIZED (
    SELECT n.snapshot, n.started, (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint AS position,
        (CASE WHEN $2::bigint > pg_snapshot_xmax(n.snapshot)::text::bigint THEN 0
            WHEN $7::bigint = n.started THEN $2::bigint
            ELSE greatest($2::bigint - 100000, 0) END)::text::xid8 AS since
    FROM (SELECT pg_current_snapshot() AS snapshot, (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint AS started) n
), page AS MATERIALIZED (
    SELECT * FROM (
        (SELECT c.*, c.b AS peer FROM conversations c WHERE c.a = $1 AND c.b > $3::text ORDER BY c.b LIMIT $4::bigint)
        UNION ALL
        (SELECT c.*, c.a AS peer FROM conversations c WHERE (c.b, c.a) > ($1, $3::text) AND c.b <= $1 AND c.a <> c.b ORDER BY c.b, c.a LIMIT $4::bigint)
    ) mine ORDER BY peer LIMIT $4::bigint
), listed AS (
    SELECT v.*, k.a_delivered, k.a_read, k.a_read_n, k.b_delivered, k.b_read, k.b_read_n,
        (v.xid >= a.since OR coalesce(CASE WHEN (v.na > 0 AND v.nb > 0) OR v.a = v.b THEN k.xid
            ELSE coalesce(CASE WHEN v.a = $1 THEN k.a_xid ELSE k.b_xid END, k.xid) END >= a.since, false)) AS changed
    FROM asked a CROSS JOIN page v LEFT JOIN LATERAL (SELECT * FROM cursors c WHERE c.conv = v.id LIMIT 1) k ON true
    WHERE v.head > 0
)
SELECT s.snapshot::text, s.started, (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
    (SELECT max(peer) FROM page HAVING count(*) = $4::bigint), s.position,
    v.id, v.a, v.b, v.head, v.floor, v.na, v.nb, (extract(epoch FROM v.last_ts) * 1000)::bigint,
    coalesce(v.a_delivered, 0), coalesce(v.a_read, 0), greatest(v.a_read_n, v.b_gone),
    coalesce(v.b_delivered, 0), coalesce(v.b_read, 0), greatest(v.b_read_n, v.a_gone), v.changed,
    CASE WHEN v.xid < pg_snapshot_xmax(s.snapshot) THEN v.xid::text::bigint ELSE 0 END, s.started
FROM asked s LEFT JOIN (SELECT * FROM listed WHERE changed OR $5::boolean OR id = ANY ($6::bigint[])) v ON true
ORDER BY v.peer
