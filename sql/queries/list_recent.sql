-- When each conversation of user $1 got its last entry (ms), and its id: the order in which a
-- client pages through them (chatd/core/recent_conversations.py). Index scans on conversations_pair
-- and conversations_b_a; reads all rows of the user.
SELECT (extract(epoch FROM v.last_ts) * 1000)::bigint, v.id FROM (
    SELECT * FROM conversations c WHERE c.a = $1 AND c.head > 0
    UNION ALL
    (SELECT * FROM conversations c WHERE c.b >= $1 AND c.b <= $1 AND c.a <> c.b AND c.head > 0 ORDER BY c.b)
) v
