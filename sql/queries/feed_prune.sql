-- Delete old rows of the feed: those that snapshot $2 sees and $1, the one of the last time, does
-- not (so no row is looked at twice); at most $3 rows. Gives whether this node did it (false:
-- another node was pruning), and how many rows were deleted. Index feed_xid.
WITH turn AS MATERIALIZED (
    SELECT pg_try_advisory_xact_lock(hashtext('chatd.feed')) AS ours
), old AS MATERIALIZED (
    SELECT ctid FROM (
        SELECT ctid FROM feed WHERE xid >= pg_snapshot_xmax($1::text::pg_snapshot) AND xid < pg_snapshot_xmax($2::text::pg_snapshot)
            AND pg_visible_in_snapshot(xid, $2::text::pg_snapshot)
        UNION ALL
        SELECT ctid FROM feed WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip($1::text::pg_snapshot)))
            AND pg_visible_in_snapshot(xid, $2::text::pg_snapshot)
    ) f WHERE (SELECT ours FROM turn) LIMIT $3::bigint
), gone AS (
    DELETE FROM feed WHERE ctid = ANY (ARRAY(SELECT ctid FROM old)) RETURNING 1
)
SELECT (SELECT ours FROM turn), (SELECT count(*) FROM gone)
