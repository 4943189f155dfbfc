-- What the watch asks once a second: which log this is (sql/migrations/0005_pre_fence.sql), whether it takes writes, and the time in ms.
SELECT m.epoch, m.identity, log_identity(), current_setting('transaction_read_only') = 'on',
    (extract(epoch FROM clock_timestamp()) * 1000)::bigint
FROM meta m
