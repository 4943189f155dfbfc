-- Which of these users' ($1) rows another transaction holds: they are left for later, and the others are written. Index scan on the primary key.
SELECT u.id FROM users u WHERE u.id = ANY ($1::text[]) AND u.id <> ALL (ARRAY(
    SELECT f.id FROM set_config('synchronous_commit', 'off', true) CROSS JOIN users f
    WHERE f.id = ANY ($1::text[]) ORDER BY f.id FOR UPDATE OF f SKIP LOCKED
))
