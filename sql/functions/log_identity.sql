-- version: 1
-- Which cluster, timeline, database and table the log is in. What a node holds in memory is valid
-- for this one alone.
--     system identifier/timeline/oid of the database/oid of `meta`
-- A promotion, a point-in-time recovery and pg_upgrade change the cluster or its timeline; a
-- restored dump changes the oids. Null on a standby. The timeline is that of the WAL being written:
-- pg_control_checkpoint() names a new one only after the next checkpoint.
CREATE OR REPLACE FUNCTION log_identity() RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN NOT pg_is_in_recovery() THEN
        (SELECT c.system_identifier FROM pg_control_system() c)
            || '/' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
            || '/' || (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
            || '/' || 'meta'::regclass::oid
    END
$$;
