-- version: 1
-- The name of the partition that starts at a time. sql/queries/partitions.sql reads the time from
-- it.
CREATE OR REPLACE FUNCTION partition_name(start timestamptz) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT 'entries_' || to_char(start AT TIME ZONE 'UTC', 'YYYYMMDD"t"HH24MISS')
$$;
