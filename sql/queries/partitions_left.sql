-- How many partitions lie ahead of the one in use. $1: their width in seconds. Index scans of the
-- catalog, two a partition.
SELECT count(*)
FROM pg_inherits i CROSS JOIN LATERAL (SELECT c.relname FROM pg_class c WHERE c.oid = i.inhrelid LIMIT 1) p
WHERE i.inhparent = 'entries'::regclass AND p.relname > partition_name(partition_start(clock_timestamp(), $1::integer))
