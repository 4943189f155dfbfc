-- For `chatd user show`: the latest conversations of a user ($1), with both sides' cursors; $2: how
-- many. The same index scans as list_conversations.sql, on conversations_pair and conversations_b;
-- it reads all rows of the user, then joins cursors for those shown.
WITH mine AS MATERIALIZED (
    SELECT * FROM conversations c WHERE c.a = $1 AND c.head > 0
    UNION ALL
    (SELECT * FROM conversations c WHERE c.b >= $1 AND c.b <= $1 AND c.a <> c.b AND c.head > 0 ORDER BY c.b)
), page AS (
    SELECT *, count(*) OVER () AS all_of_them FROM mine v
    ORDER BY last_ts DESC, v.id DESC
    LIMIT $2
)
SELECT v.id, v.a, v.b, v.head, v.floor, v.na, v.nb, (extract(epoch FROM v.last_ts) * 1000)::bigint,
    coalesce(k.a_delivered, 0), coalesce(k.a_read, 0), greatest(k.a_read_n, v.b_gone),
    coalesce(k.b_delivered, 0), coalesce(k.b_read, 0), greatest(k.b_read_n, v.a_gone), v.all_of_them
FROM page v LEFT JOIN LATERAL (SELECT * FROM cursors c WHERE c.conv = v.id LIMIT 1) k ON true
ORDER BY v.last_ts DESC, v.id DESC
