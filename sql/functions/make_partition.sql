-- version: 1
-- Makes the partition that holds a time, in the schema of `entries` whatever the caller's
-- search_path is. Gives its name, or null if it was there. Called by retention, and by a send that
-- found none. It is made as a table of its own and then attached with its bounds checked: CREATE
-- ... PARTITION OF queues every insert behind an open reader. What an interrupted call left is used
-- by the next.
CREATE OR REPLACE FUNCTION make_partition(at timestamptz) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    width  integer := (SELECT partition_s FROM meta);
    lo     timestamptz := partition_start(at, width);
    hi     timestamptz := lo + make_interval(secs => width);
    name   text := partition_name(lo);
    schema text := (
        SELECT n.nspname FROM pg_class e JOIN pg_namespace n ON n.oid = e.relnamespace WHERE e.oid = 'entries'::regclass
    );
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('chatd.partitions'));
    IF (SELECT i.inhrelid FROM pg_class p
        CROSS JOIN LATERAL (SELECT h.* FROM pg_inherits h WHERE h.inhrelid = p.oid ORDER BY h.inhseqno LIMIT 1) i
        WHERE p.relname = name
            AND p.relnamespace = (SELECT e.relnamespace FROM pg_class e WHERE e.oid = 'entries'::regclass)
            AND i.inhparent = 'entries'::regclass) IS NOT NULL THEN
        RETURN NULL;
    END IF;
    EXECUTE format(
        'CREATE TABLE IF NOT EXISTS %I.%I (LIKE entries INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', schema, name);
    EXECUTE format('ALTER TABLE %I.%I DROP CONSTRAINT IF EXISTS bounds', schema, name);
    EXECUTE format('ALTER TABLE %I.%I ADD CONSTRAINT bounds CHECK (ts >= %L AND ts < %L)', schema, name, lo, hi);
    EXECUTE format('ALTER TABLE entries ATTACH PARTITION %I.%I FOR VALUES FROM (%L) TO (%L)', schema, name, lo, hi);
    EXECUTE format('ALTER TABLE %I.%I DROP CONSTRAINT bounds', schema, name);
    RETURN name;
END $$;
