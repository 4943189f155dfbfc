-- Whether the database knows a user ($1). For a hello by a name that today's rules refuse
-- (chatd/unicode_ids.py): the name may be older than the rule.
-- Three probes: the primary key of users, conversations_pair (side a), conversations_b (side b).
SELECT (SELECT u.seen_ms FROM users u WHERE u.id = $1) IS NOT NULL
    OR (SELECT c.head FROM conversations c WHERE c.a = $1 ORDER BY c.a LIMIT 1) IS NOT NULL
    OR (SELECT c.head FROM conversations c WHERE c.b >= $1 AND c.b <= $1 AND c.a <> c.b ORDER BY c.b LIMIT 1) IS NOT NULL
