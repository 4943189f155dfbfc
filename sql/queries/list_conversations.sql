-- One page of a user's ($1) conversations, the latest entry first. Keyset: older than ($2 ts in us, $3 id); null at the start. $4: limit.
-- Index scans on conversations_pair and conversations_b; reads all rows of the user, then joins cursors for the page alone.
WITH mine AS MATERIALIZED (
    SELECT * FROM conversations c WHERE c.a = $1 AND c.head > 0
    UNION ALL
    (SELECT * FROM conversations c WHERE c.b >= $1 AND c.b <= $1 AND c.a <> c.b AND c.head > 0 ORDER BY c.b)
), page AS (
    SELECT *, (extract(epoch FROM last_ts) * 1000000)::bigint AS us FROM mine v
    WHERE $2::bigint IS NULL OR ((extract(epoch FROM last_ts) * 1000000)::bigint, v.id) < ($2::bigint, $3::bigint)
    ORDER BY last_ts DESC, v.id DESC
    LIMIT $4
)
SELECT v.id, v.a, v.b, v.head, v.floor, v.na, v.nb, (extract(epoch FROM v.last_ts) * 1000)::bigint,
    coalesce(k.a_delivered, 0), coalesce(k.a_read, 0), greatest(k.a_read_n, v.b_gone),
    coalesce(k.b_delivered, 0), coalesce(k.b_read, 0), greatest(k.b_read_n, v.a_gone), v.us
FROM page v LEFT JOIN LATERAL (SELECT * FROM cursors c WHERE c.conv = v.id LIMIT 1) k ON true
ORDER BY v.last_ts DESC, v.id DESC
