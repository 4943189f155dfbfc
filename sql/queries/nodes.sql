-- The nodes at work on this database, each by the shared advisory lock that its watch holds ($1:
-- the class of the locks): the lock's key, the name of that session, and its address. A session
-- without a statement for $2 seconds is of a node that hangs, or of a host that died: it does not
-- count. Where another role's sessions cannot be seen, all count.
SELECT DISTINCT l.objid::bigint, coalesce(a.application_name, ''), coalesce(host(a.client_addr), 'local')
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.classid = $1::bigint::oid AND l.objsubid = 2 AND l.granted
    AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
    AND coalesce(a.query_start > clock_timestamp() - make_interval(secs => $2::float8), true)
ORDER BY 1
