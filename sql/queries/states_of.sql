-- Conversations as they are, by id ($1): those that the feed names as new, to know whose they are.
-- Index scans on the primary keys.
SELECT v.id, v.a, v.b, v.head, v.floor, v.na, v.nb, (extract(epoch FROM v.last_ts) * 1000)::bigint,
    coalesce(k.a_delivered, 0), coalesce(k.a_read, 0), coalesce(k.a_read_n, 0),
    coalesce(k.b_delivered, 0), coalesce(k.b_read, 0), coalesce(k.b_read_n, 0)
FROM conversations v LEFT JOIN LATERAL (SELECT * FROM cursors c WHERE c.conv = v.id LIMIT 1) k ON true
WHERE v.id = ANY ($1::bigint[])
