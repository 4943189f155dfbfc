-- Which backends (pid $1, started at $2 us since 1970) are still there: one whose client has given up may yet carry out what it was sent. No table.
SELECT b.pid, b.started
FROM unnest($1::integer[], $2::bigint[]) AS b (pid, started) CROSS JOIN LATERAL pg_stat_get_activity(b.pid) a
WHERE (extract(epoch FROM a.backend_start) * 1000000)::bigint = b.started
