-- Which backends (pid $1, started at $2 us since 1970) still run. A backend whose client has given
-- up may still execute what it was sent. No table.
SELECT b.pid, b.started
FROM unnest($1::integer[], $2::bigint[]) AS b (pid, started) CROSS JOIN LATERAL pg_stat_get_activity(b.pid) a
WHERE (extract(epoch FROM a.backend_start) * 1000000)::bigint = b.started
