-- Conversations as they are, by id ($1), and those between pairs of users ($2, $3: a, b): they come
-- into memory when a request names them (chatd/chat/loading.py). Behind the columns of every such
-- row: the transaction that wrote the head, and when the server was started, in us since 1970. A
-- transaction that is ahead of all was one of another cluster, before a restore: 0, older than all.
-- Index scans on the primary keys and conversations_pair.
SELECT v.id, v.a, v.b, v.head, v.floor, v.na, v.nb, (extract(epoch FROM v.last_ts) * 1000)::bigint,
    coalesce(k.a_delivered, 0), coalesce(k.a_read, 0), coalesce(k.a_read_n, 0),
    coalesce(k.b_delivered, 0), coalesce(k.b_read, 0), coalesce(k.b_read_n, 0), false,
    CASE WHEN v.xid < pg_snapshot_xmax(pg_current_snapshot()) THEN v.xid::text::bigint ELSE 0 END,
    (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint
FROM (
    SELECT c.* FROM unnest($1::bigint[]) AS w (id) CROSS JOIN LATERAL (SELECT * FROM conversations c WHERE c.id = w.id LIMIT 1) c
    UNION ALL
    SELECT c.* FROM unnest($2::text[], $3::text[]) AS w (a, b)
    CROSS JOIN LATERAL (SELECT * FROM conversations c WHERE c.a = w.a AND c.b = w.b LIMIT 1) c
) v LEFT JOIN LATERAL (SELECT * FROM cursors c WHERE c.conv = v.id LIMIT 1) k ON true
