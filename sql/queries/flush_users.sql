-- Write last-seen behind: arrays of user and ms. It waits 200 ms for a row that another transaction holds (users_locked.sql). Sorted against
-- deadlocks. Nobody is seen in the future: a time that lies ahead was written by a clock that has been set right since, and would hide all later ones.
INSERT INTO users AS u (id, seen_ms)
SELECT w.id, least(w.seen_ms, n.ms)
FROM set_config('lock_timeout', '200ms', true) CROSS JOIN unnest($1::text[], $2::bigint[]) AS w (id, seen_ms),
    (SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS ms) n
ORDER BY w.id
ON CONFLICT (id) DO UPDATE SET seen_ms = CASE
    WHEN u.seen_ms > (extract(epoch FROM clock_timestamp()) * 1000)::bigint THEN excluded.seen_ms
    ELSE greatest(u.seen_ms, excluded.seen_ms) END
