-- Last-seen of users, for those who are offline.
SELECT u.id, u.seen_ms FROM users u WHERE u.id = ANY ($1::text[])
