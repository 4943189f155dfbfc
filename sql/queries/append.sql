-- One batch of a lane; see the function in sql/migrations. Parameters: five arrays of messages, six of changes, the edit window.
SELECT ord, conv, seq, ts, note FROM append(
    $1::bigint[], $2::smallint[], $3::text[]::uuid[], $4::text[], $5::smallint[],
    $6::bigint[], $7::smallint[], $8::text[]::uuid[], $9::text[], $10::smallint[], $11::bigint[], $12::interval)
