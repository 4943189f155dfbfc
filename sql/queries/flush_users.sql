-- Write last-seen behind: arrays of user and ms. Sorted against deadlocks.
INSERT INTO users AS u (id, seen_ms)
SELECT w.id, w.seen_ms FROM unnest($1::text[], $2::bigint[]) AS w (id, seen_ms) ORDER BY w.id
ON CONFLICT (id) DO UPDATE SET seen_ms = greatest(u.seen_ms, excluded.seen_ms)
