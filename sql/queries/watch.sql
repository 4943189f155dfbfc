-- What the watch asks once a second: which log this is (sql/functions/log_identity.sql), whether it
-- takes writes, the time in ms, whether conversation $1 has at least entry $2 and is of the pair
-- with pair_check $3 (null where the node knows none), whether restamp.sql has work, and up to where
-- the log is on disk here (bytes from the beginning of WAL). Index scan on the primary key.
SELECT m.epoch, m.identity, log_identity(), current_setting('transaction_read_only') = 'on',
    (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
    (SELECT v.head >= $2::bigint AND pair_check(v.a, v.b) = $3::integer FROM conversations v WHERE v.id = $1::bigint),
    m.restamp IS NOT NULL,
    (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END - '0/0'::pg_lsn)::bigint
FROM meta m
