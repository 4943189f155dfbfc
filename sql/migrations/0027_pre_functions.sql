-- The functions of sql/functions are applied by `chatd migrate` and no longer by migrations.

-- What was applied last, of each file. sha256: over its statement. A release leaves a function
-- alone whose version here is greater than its own: that is a newer release's
-- (chatd/postgres/functions.py).
CREATE TABLE _chatd_function (
    name     text PRIMARY KEY,
    version  integer NOT NULL,
    sha256   text NOT NULL,
    applied  timestamptz NOT NULL DEFAULT clock_timestamp()
);
