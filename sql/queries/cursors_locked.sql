-- The conversations of $1 whose cursors another transaction holds: they are written later, and the
-- others now. Index scan on the primary key.
SELECT k.conv FROM cursors k WHERE k.conv = ANY ($1::bigint[]) AND k.conv <> ALL (ARRAY(
    SELECT f.conv FROM set_config('synchronous_commit', 'off', true) CROSS JOIN cursors f
    WHERE f.conv = ANY ($1::bigint[]) ORDER BY f.conv FOR UPDATE OF f SKIP LOCKED
))
