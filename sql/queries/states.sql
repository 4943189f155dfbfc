-- Conversations as they are, of users $1 (both sides), whose head or cursors transaction $2 or a
-- later one has changed: a node that has missed changes catches up by it, also with conversations
-- that it does not know. Index scans on conversations_pair, conversations_b_a, cursors.
WITH mine AS MATERIALIZED (
    SELECT * FROM conversations c WHERE c.a = ANY ($1::text[]) AND c.head > 0
    UNION ALL
    (SELECT * FROM conversations c WHERE c.b = ANY ($1::text[]) AND c.a <> c.b AND c.a <> ALL ($1::text[]) AND c.head > 0 ORDER BY c.b)
)
SELECT v.id, v.a, v.b, v.head, v.floor, v.na, v.nb, (extract(epoch FROM v.last_ts) * 1000)::bigint,
    coalesce(k.a_delivered, 0), coalesce(k.a_read, 0), coalesce(k.a_read_n, 0),
    coalesce(k.b_delivered, 0), coalesce(k.b_read, 0), coalesce(k.b_read_n, 0)
FROM mine v LEFT JOIN LATERAL (SELECT * FROM cursors c WHERE c.conv = v.id LIMIT 1) k ON true
WHERE v.xid >= $2::text::xid8 OR k.xid >= $2::text::xid8
