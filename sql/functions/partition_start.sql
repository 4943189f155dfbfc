-- version: 1
-- The start of the partition that holds a time: a multiple of its width since 1970.
CREATE OR REPLACE FUNCTION partition_start(at timestamptz, width_s integer) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT to_timestamp(floor(extract(epoch FROM at) / width_s) * width_s)
$$;
