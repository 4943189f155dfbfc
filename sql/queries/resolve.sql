-- The conversations of pairs of users (a <= b), made where they are missing. $1, $2: arrays of a
-- and b; $3: for each pair the user who must have been here, or null (setting unknown_recipients =
-- refuse): a pair whose user was not is left out. A pair that another transaction makes at this
-- moment is in neither half of the answer: ask again. Made in order of (a, b) against deadlocks;
-- $4: how long to wait for such a transaction (lock_timeout of this statement alone, 0: as long as
-- it may run). Behind the columns: as in load_conversations.sql. Index conversations_pair.
WITH asked AS (
    SELECT DISTINCT p.a, p.b FROM set_config('lock_timeout', $4::text, true), unnest($1::text[], $2::text[], $3::text[]) AS p (a, b, known)
    WHERE p.known IS NULL OR (SELECT u.seen_ms FROM users u WHERE u.id = p.known) IS NOT NULL
    ORDER BY p.a, p.b
), made AS (
    INSERT INTO conversations (a, b) SELECT a, b FROM asked
    WHERE (SELECT v.id FROM conversations v WHERE v.a = asked.a AND v.b = asked.b) IS NULL
    ORDER BY a, b
    ON CONFLICT (a, b) DO NOTHING
    RETURNING id, a, b, head, floor, na, nb, (extract(epoch FROM last_ts) * 1000)::bigint AS ts, xid::text::bigint AS xid
)
SELECT f.*, (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint FROM (
    SELECT * FROM made
    UNION ALL
    SELECT v.id, v.a, v.b, v.head, v.floor, v.na, v.nb, (extract(epoch FROM v.last_ts) * 1000)::bigint, v.xid::text::bigint
    FROM asked CROSS JOIN LATERAL (SELECT * FROM conversations c WHERE c.a = asked.a AND c.b = asked.b LIMIT 1) v
) f
