-- What only releases before 0027_pre_functions use: two older functions `append`, and two tables of
-- yoyo-migrations.

DROP FUNCTION IF EXISTS append(
    bigint[], smallint[], uuid[], text[], smallint[], bigint[], smallint[], uuid[], text[], smallint[], bigint[],
    interval
);
DROP FUNCTION IF EXISTS append(
    bigint[], uuid[], text[], integer[], bigint[], smallint[], uuid[], text[], smallint[], bigint[],
    integer[], interval, text, integer
);
DROP TABLE IF EXISTS _yoyo_log, _yoyo_version;
