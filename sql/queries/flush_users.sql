-- Write last-seen times behind: arrays of user and ms. Waits 200 ms for a row that another
-- transaction holds (users_locked.sql). Sorted against deadlocks. No time lies in the future: one
-- that does was written by a clock that has been corrected since, and would hide all later ones.
INSERT INTO users AS u (id, seen_ms)
SELECT w.id, least(w.seen_ms, n.ms)
FROM set_config('lock_timeout', '200ms', true) CROSS JOIN unnest($1::text[], $2::bigint[]) AS w (id, seen_ms),
    (SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS ms) n
ORDER BY w.id
ON CONFLICT (id) DO UPDATE SET seen_ms = CASE
    WHEN u.seen_ms > (extract(epoch FROM clock_timestamp()) * 1000)::bigint THEN excluded.seen_ms
    ELSE greatest(u.seen_ms, excluded.seen_ms) END
