-- What the watch asks once a second: which log this is (sql/functions/log_identity.sql), whether it takes writes, the time in ms, and whether
-- conversation $1 is there as far as $2 and between the two of pair_check $3; null for a node that knows of none. And whether there is something to be
-- done by restamp.sql. Index scan on the primary key.
SELECT m.epoch, m.identity, log_identity(), current_setting('transaction_read_only') = 'on',
    (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
    (SELECT v.head >= $2::bigint AND pair_check(v.a, v.b) = $3::integer FROM conversations v WHERE v.id = $1::bigint),
    m.restamp IS NOT NULL
FROM meta m
