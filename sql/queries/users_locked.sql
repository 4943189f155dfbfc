-- The users of $1 whose row another transaction holds: they are written later, and the others now.
-- Index scan on the primary key.
SELECT u.id FROM users u WHERE u.id = ANY ($1::text[]) AND u.id <> ALL (ARRAY(
    SELECT f.id FROM set_config('synchronous_commit', 'off', true) CROSS JOIN users f
    WHERE f.id = ANY ($1::text[]) ORDER BY f.id FOR UPDATE OF f SKIP LOCKED
))
