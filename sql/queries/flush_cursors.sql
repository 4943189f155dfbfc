-- Write cursors behind (chatd/postgres/state_flush.py says when): arrays of conversation, a_delivered, a_read, b_delivered, b_read. Waits 200
-- ms for a row that another transaction holds: all hellos of users with a cursor in this flush wait
-- for it (cursors_locked.sql). Forward only, one row per conversation, sorted against deadlocks.
-- *_read_n: the peer's messages up to the read cursor. It stays if the cursor does (the common
-- case: only `delivered` moved); it is the head's number where all is read, else that of the entry
-- itself. If retention has dropped the entry, all before the first one left count as read. Index
-- entries_seq, for cursors that moved and are not at the head.
-- In a session that is set so, the feed gets all of it as one row, as it is in the table afterwards
-- (sql/migrations/0003_pre_feed.sql). a_xid, b_xid: the last transaction that moved that side's
-- cursors (sql/migrations/0026_pre_sides.sql).
WITH moved AS (
INSERT INTO cursors AS k (conv, a_delivered, a_read, a_read_n, b_delivered, b_read, b_read_n, xid, a_xid, b_xid)
SELECT w.conv, w.a_delivered, w.a_read,
    CASE WHEN w.a_read <= coalesce(o.a_read, 0) THEN coalesce(o.a_read_n, 0)
        WHEN w.a_read >= v.head THEN v.nb
        ELSE coalesce((SELECT e.nb - (e.seq > w.a_read AND e.kind = 0 AND e.side = 1)::integer FROM entries e
            WHERE e.conv = w.conv AND e.seq >= w.a_read ORDER BY e.seq LIMIT 1), v.nb) END,
    w.b_delivered, w.b_read,
    CASE WHEN w.b_read <= coalesce(o.b_read, 0) THEN coalesce(o.b_read_n, 0)
        WHEN w.b_read >= v.head THEN v.na
        ELSE coalesce((SELECT e.na - (e.seq > w.b_read AND e.kind = 0 AND e.side = 0)::integer FROM entries e
            WHERE e.conv = w.conv AND e.seq >= w.b_read ORDER BY e.seq LIMIT 1), v.na) END,
    n.xid, CASE WHEN w.a_delivered > 0 THEN n.xid ELSE n.never END, CASE WHEN w.b_delivered > 0 THEN n.xid ELSE n.never END
FROM set_config('lock_timeout', '200ms', true) CROSS JOIN (SELECT pg_current_xact_id() AS xid, '0'::xid8 AS never) n
CROSS JOIN unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[]) AS w (conv, a_delivered, a_read, b_delivered, b_read)
CROSS JOIN LATERAL (SELECT * FROM conversations c WHERE c.id = w.conv LIMIT 1) v
LEFT JOIN LATERAL (SELECT * FROM cursors c WHERE c.conv = w.conv LIMIT 1) o ON true
ORDER BY w.conv
ON CONFLICT (conv) DO UPDATE SET
    a_delivered = greatest(k.a_delivered, excluded.a_delivered), a_read = greatest(k.a_read, excluded.a_read),
    a_read_n = greatest(k.a_read_n, excluded.a_read_n),
    b_delivered = greatest(k.b_delivered, excluded.b_delivered), b_read = greatest(k.b_read, excluded.b_read),
    b_read_n = greatest(k.b_read_n, excluded.b_read_n), xid = excluded.xid,
    a_xid = CASE WHEN (excluded.a_delivered > k.a_delivered OR excluded.a_read > k.a_read) THEN excluded.xid ELSE coalesce(k.a_xid, k.xid) END,
    b_xid = CASE WHEN (excluded.b_delivered > k.b_delivered OR excluded.b_read > k.b_read) THEN excluded.xid ELSE coalesce(k.b_xid, k.xid) END
RETURNING conv, a_delivered, a_read, b_delivered, b_read
)
INSERT INTO feed (kind, data)
SELECT 1, array_agg(conv) || array_agg(a_delivered) || array_agg(a_read) || array_agg(b_delivered) || array_agg(b_read)
FROM moved WHERE current_setting('chatd.feed', true) = 'on' HAVING count(*) > 0
