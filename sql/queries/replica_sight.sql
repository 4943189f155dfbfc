-- What a server named by database_replica_url is: the epoch and place of its log as `meta` has them;
-- log_identity(), null on a standby; cluster, database and table; the newest timeline of its control
-- file; up to where of the log it shows (bytes from the beginning of WAL).
-- On a standby the timeline is at least that of the last restartpoint, so it may be an older one.
SELECT m.epoch, m.identity, log_identity(),
    (SELECT c.system_identifier FROM pg_control_system() c)::text
        || '/' || (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()) || '/' || m.tableoid,
    (SELECT greatest(c.timeline_id, r.min_recovery_end_timeline) FROM pg_control_checkpoint() c, pg_control_recovery() r),
    (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END - '0/0'::pg_lsn)::bigint
FROM meta m
