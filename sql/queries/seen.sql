-- Last-seen of users, for those who are offline. One that lies ahead was written by a clock that has been set right since: it is not known.
SELECT u.id, u.seen_ms FROM users u WHERE u.id = ANY ($1::text[]) AND u.seen_ms <= (extract(epoch FROM clock_timestamp()) * 1000)::bigint
