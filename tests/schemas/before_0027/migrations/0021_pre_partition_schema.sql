-- make_partition makes a partition where the log is.
-- depends: 0019_pre_refcid

-- As in 0013_pre_plans.sql. New is the schema: it is that of `entries`, whatever comes first in the search_path of who calls. A partition in another one
-- was not seen by the check, and each later call failed.
CREATE OR REPLACE FUNCTION make_partition(at timestamptz) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    width  integer := (SELECT partition_s FROM meta);
    lo     timestamptz := partition_start(at, width);
    hi     timestamptz := lo + make_interval(secs => width);
    name   text := partition_name(lo);
    schema text := (SELECT n.nspname FROM pg_class e JOIN pg_namespace n ON n.oid = e.relnamespace WHERE e.oid = 'entries'::regclass);
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('chatd.partitions'));
    IF (SELECT i.inhrelid FROM pg_class p
        CROSS JOIN LATERAL (SELECT h.* FROM pg_inherits h WHERE h.inhrelid = p.oid ORDER BY h.inhseqno LIMIT 1) i
        WHERE p.relname = name AND p.relnamespace = (SELECT e.relnamespace FROM pg_class e WHERE e.oid = 'entries'::regclass)
            AND i.inhparent = 'entries'::regclass) IS NOT NULL THEN
        RETURN NULL;
    END IF;
    EXECUTE format('CREATE TABLE IF NOT EXISTS %I.%I (LIKE entries INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', schema, name);
    EXECUTE format('ALTER TABLE %I.%I DROP CONSTRAINT IF EXISTS bounds', schema, name);
    EXECUTE format('ALTER TABLE %I.%I ADD CONSTRAINT bounds CHECK (ts >= %L AND ts < %L)', schema, name, lo, hi);
    EXECUTE format('ALTER TABLE entries ATTACH PARTITION %I.%I FOR VALUES FROM (%L) TO (%L)', schema, name, lo, hi);
    EXECUTE format('ALTER TABLE %I.%I DROP CONSTRAINT bounds', schema, name);
    RETURN name;
END $$;
