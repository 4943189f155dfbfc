-- The conversations of a page, or of a hello, by id ($1) as they are now; memory knows their order.
-- The last three columns are as in load_conversations.sql. Index scans on the primary keys.
SELECT v.id, v.a, v.b, v.head, v.floor, v.na, v.nb, (extract(epoch FROM v.last_ts) * 1000)::bigint,
    coalesce(k.a_delivered, 0), coalesce(k.a_read, 0), greatest(k.a_read_n, v.b_gone),
    coalesce(k.b_delivered, 0), coalesce(k.b_read, 0), greatest(k.b_read_n, v.a_gone), false,
    CASE WHEN v.xid < pg_snapshot_xmax(pg_current_snapshot()) THEN v.xid::text::bigint ELSE 0 END,
    (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint
FROM conversations v LEFT JOIN LATERAL (SELECT * FROM cursors c WHERE c.conv = v.id LIMIT 1) k ON true
WHERE v.id = ANY ($1::bigint[])
