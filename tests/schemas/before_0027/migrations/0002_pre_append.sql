-- append: one batch of one lane, in one round trip and one transaction.
-- depends: 0001_pre_log

-- The name and bounds of the partition that holds a time.
CREATE FUNCTION partition_start(at timestamptz, width_s integer) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT to_timestamp(floor(extract(epoch FROM at) / width_s) * width_s)
$$;

CREATE FUNCTION partition_name(start timestamptz) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT 'entries_' || to_char(start AT TIME ZONE 'UTC', 'YYYYMMDD"t"HH24MISS')
$$;

-- Arrays of messages (m_*) and of edits and deletes (x_*, rare); m_probe: over the rate limit, only look for the cid;
-- *_again: the client says that it may have sent this before.
-- Gives one row per conversation that got messages: (ord null, conv, its first new seq, ts in ms, note null), and one row per item
-- that is special: (ord of m_ 0.., or -1 - ord of x_), with note 'dup', 'limited', or a refusal code; note null = done.
--
-- Order that is law: (1) lock the counters, in order of id, so that lanes and nodes cannot deadlock; (2) read the clock, as time along a
-- log must not go back; (3) look for duplicates in a snapshot taken AFTER the locks were granted (a volatile function takes a fresh
-- snapshot for each statement at READ COMMITTED, which lanes ask for); a check in the locking statement, or any at REPEATABLE READ, would
-- miss what was committed while it waited; (4) count up and insert.
-- What bounds the check, so that it probes 3 partitions and not 40: a fresh send is looked for in two days; no entry is later than `newest`.
-- Measured on 2 cores, 38 partitions, 10,000 conversations, PostgreSQL's CPU: 1 row 255-305 us, 10 rows 47 us each, 50 rows 23, 200 rows 22.
CREATE FUNCTION append(
    m_conv bigint[], m_side smallint[], m_cid uuid[], m_body text[], m_flags smallint[],
    x_conv bigint[], x_side smallint[], x_cid uuid[], x_body text[], x_kind smallint[], x_ref bigint[],
    edit_window interval
) RETURNS TABLE (ord integer, conv bigint, seq bigint, ts bigint, note text)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    t        timestamptz;
    newest   timestamptz;
    skip     integer[] := '{}';
    r        record;
    c        conversations%ROWTYPE;
    target   record;
    probing  boolean := 1 = ANY (m_flags) OR 3 = ANY (m_flags);
    again    boolean := 2 = ANY (m_flags) OR 3 = ANY (m_flags);
BEGIN
    SELECT max(v.last_ts) INTO newest FROM (
        SELECT v.last_ts FROM conversations v WHERE v.id = ANY (m_conv || x_conv) ORDER BY v.id FOR NO KEY UPDATE
    ) v;
    t := clock_timestamp();
    newest := greatest(newest, t);  -- later than t only if the clock went back

    FOR r IN
        SELECT m.ord::integer - 1 AS ord, m.conv, e.seq, e.ts
        FROM unnest(m_conv, m_side, m_cid) WITH ORDINALITY AS m (conv, side, cid, ord)
        CROSS JOIN LATERAL (SELECT e.seq, e.ts FROM entries e
            WHERE e.conv = m.conv AND e.cid = m.cid AND e.side = m.side AND e.ts >= t - interval '2 days' AND e.ts <= newest LIMIT 1) e
    LOOP
        skip := skip || r.ord;
        RETURN QUERY SELECT r.ord, r.conv, r.seq, (extract(epoch FROM r.ts) * 1000)::bigint, 'dup';
    END LOOP;
    IF again THEN
        FOR r IN
            SELECT m.ord::integer - 1 AS ord, m.conv, e.seq, e.ts
            FROM unnest(m_conv, m_side, m_cid, m_flags) WITH ORDINALITY AS m (conv, side, cid, flags, ord)
            CROSS JOIN LATERAL (SELECT e.seq, e.ts FROM entries e
                WHERE e.conv = m.conv AND e.cid = m.cid AND e.side = m.side AND e.ts < t - interval '2 days' LIMIT 1) e
            WHERE m.flags >= 2 AND m.ord - 1 <> ALL (skip)
        LOOP
            skip := skip || r.ord;
            RETURN QUERY SELECT r.ord, r.conv, r.seq, (extract(epoch FROM r.ts) * 1000)::bigint, 'dup';
        END LOOP;
    END IF;
    IF probing THEN
        FOR r IN
            SELECT m.ord::integer - 1 AS ord, m.conv
            FROM unnest(m_conv, m_flags) WITH ORDINALITY AS m (conv, flags, ord)
            WHERE m.flags IN (1, 3) AND m.ord - 1 <> ALL (skip)
        LOOP
            skip := skip || r.ord;
            RETURN QUERY SELECT r.ord, r.conv, NULL::bigint, NULL::bigint, 'limited';
        END LOOP;
    END IF;

    RETURN QUERY
        WITH m AS MATERIALIZED (
            SELECT m.conv, m.side, m.cid, m.body, m.ord,
                row_number() OVER w AS n, count(*) FILTER (WHERE m.side = 0) OVER w AS n0
            FROM unnest(m_conv, m_side, m_cid, m_body) WITH ORDINALITY AS m (conv, side, cid, body, ord)
            WHERE skip = '{}' OR m.ord - 1 <> ALL (skip)
            WINDOW w AS (PARTITION BY m.conv ORDER BY m.ord)
        ), k AS (
            SELECT m.conv, max(m.n) AS n, max(m.n0) AS n0 FROM m GROUP BY m.conv
        ), u AS (
            UPDATE conversations v
            SET head = v.head + k.n, na = v.na + k.n0, nb = v.nb + (k.n - k.n0),
                last_ts = greatest(v.last_ts, t), xid = pg_current_xact_id()
            FROM k WHERE v.id = k.conv
            RETURNING v.id, v.head - k.n AS base, v.na - k.n0 AS na, v.nb - (k.n - k.n0) AS nb, v.last_ts
        ), i AS (
            INSERT INTO entries (conv, seq, ts, cid, na, nb, side, kind, body)
            SELECT m.conv, u.base + m.n, u.last_ts, m.cid, u.na + m.n0, u.nb + (m.n - m.n0), m.side, 0, m.body
            FROM m JOIN u ON u.id = m.conv
        )
        SELECT NULL::integer, u.id, u.base + 1, (extract(epoch FROM u.last_ts) * 1000)::bigint, NULL::text FROM u;

    -- Edits and deletes come after this batch's messages: the lane cuts a batch where that would change an order.
    FOR i IN 1 .. coalesce(array_length(x_conv, 1), 0) LOOP
        SELECT e.seq, e.ts INTO r FROM entries e
            WHERE e.conv = x_conv[i] AND e.cid = x_cid[i] AND e.side = x_side[i] LIMIT 1;
        IF FOUND THEN
            RETURN QUERY SELECT -i, x_conv[i], r.seq, (extract(epoch FROM r.ts) * 1000)::bigint, 'dup';
            CONTINUE;
        END IF;
        IF x_kind[i] < 0 THEN
            RETURN QUERY SELECT -i, x_conv[i], NULL::bigint, NULL::bigint, 'limited';
            CONTINUE;
        END IF;
        SELECT * INTO c FROM conversations v WHERE v.id = x_conv[i];
        SELECT e.seq, e.ts, e.side, e.body INTO target FROM entries e
            WHERE e.conv = x_conv[i] AND e.seq = x_ref[i] AND e.kind = 0 AND e.seq >= c.floor;
        IF NOT FOUND THEN
            RETURN QUERY SELECT -i, x_conv[i], NULL::bigint, NULL::bigint, 'no_message';
        ELSIF target.side <> x_side[i] THEN
            RETURN QUERY SELECT -i, x_conv[i], NULL::bigint, NULL::bigint, 'not_author';
        ELSIF target.body IS NULL THEN
            RETURN QUERY SELECT -i, x_conv[i], NULL::bigint, NULL::bigint, 'deleted';
        ELSIF x_kind[i] = 1 AND t > target.ts + edit_window THEN
            RETURN QUERY SELECT -i, x_conv[i], NULL::bigint, NULL::bigint, 'too_late';
        ELSE
            UPDATE conversations v SET head = c.head + 1, last_ts = greatest(c.last_ts, t), xid = pg_current_xact_id()
                WHERE v.id = c.id RETURNING v.last_ts INTO c.last_ts;
            UPDATE entries e SET body = CASE x_kind[i] WHEN 1 THEN x_body[i] END, rev = c.head + 1, changed = c.last_ts
                WHERE e.conv = c.id AND e.seq = x_ref[i] AND e.ts = target.ts;
            INSERT INTO entries (conv, seq, ts, cid, na, nb, side, kind, ref, ref_ts)
                VALUES (c.id, c.head + 1, c.last_ts, x_cid[i], c.na, c.nb, x_side[i], x_kind[i], x_ref[i], target.ts);
            RETURN QUERY SELECT -i, c.id, c.head + 1, (extract(epoch FROM c.last_ts) * 1000)::bigint, NULL::text;
        END IF;
    END LOOP;
END $$;

-- Make the partition that holds a time, as ATTACH of a checked table (CREATE ... PARTITION OF would queue every insert behind an
-- open reader). Idempotent; gives the name, or null if it was there. Call it under the retention lock or from a send that found none.
CREATE FUNCTION make_partition(at timestamptz) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    width  integer := (SELECT partition_s FROM meta);
    lo     timestamptz := partition_start(at, width);
    hi     timestamptz := lo + make_interval(secs => width);
    name   text := partition_name(lo);
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('chatd.partitions'));
    IF EXISTS (SELECT FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhrelid
               WHERE i.inhparent = 'entries'::regclass AND p.relname = name) THEN
        RETURN NULL;
    END IF;
    EXECUTE format('CREATE TABLE IF NOT EXISTS %I (LIKE entries INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
    EXECUTE format('ALTER TABLE %I DROP CONSTRAINT IF EXISTS bounds', name);
    EXECUTE format('ALTER TABLE %I ADD CONSTRAINT bounds CHECK (ts >= %L AND ts < %L)', name, lo, hi);
    EXECUTE format('ALTER TABLE entries ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, lo, hi);
    EXECUTE format('ALTER TABLE %I DROP CONSTRAINT bounds', name);
    RETURN name;
END $$;
