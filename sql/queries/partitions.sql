-- The log's partitions, oldest first: name; attached, detach pending (a detach was interrupted) or
-- detached; whether all its range is older than $1 seconds. $2: their width in seconds. A table
-- counts by its name (see partition_name), which has its start; no other table is touched.
SELECT p.name, p.state, p.start + make_interval(secs => $2) <= clock_timestamp() - make_interval(secs => $1::float8)
FROM (
    SELECT c.relname::text AS name,
        CASE WHEN i.inhrelid IS NULL THEN 'detached' WHEN i.inhdetachpending THEN 'pending' ELSE 'attached' END AS state,
        to_timestamp(substr(c.relname, 9) || ' +00', 'YYYYMMDD"t"HH24MISS TZH') AS start
    FROM pg_class c LEFT JOIN LATERAL (
        SELECT * FROM pg_inherits h WHERE h.inhrelid = c.oid AND h.inhparent = 'entries'::regclass ORDER BY h.inhseqno LIMIT 1
    ) i ON true
    WHERE c.relkind = 'r' AND c.relname ~ '^entries_[0-9]{8}t[0-9]{6}$'
        AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'entries'::regclass)
) p
ORDER BY p.start
