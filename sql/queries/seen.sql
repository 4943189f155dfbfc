-- Last-seen times of users who are offline. A time that lies ahead was written by a clock that has
-- been corrected since: it counts as unknown.
SELECT u.id, u.seen_ms FROM users u WHERE u.id = ANY ($1::text[]) AND u.seen_ms <= (extract(epoch FROM clock_timestamp()) * 1000)::bigint
