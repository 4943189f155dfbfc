"""The servers that a conninfo names, each alone, as libpq reads it."""

from __future__ import annotations

from psycopg.conninfo import conninfo_to_dict

from chatd.postgres.hosts import each


def test_each_host_has_its_port_and_all_that_is_common() -> None:
    found = each("host=a,b port=1,2 user=u dbname=d target_session_attrs=read-write")
    assert list(found) == ["a:1", "b:2"]
    assert conninfo_to_dict(found["b:2"]) == {
        "host": "b", "port": "2", "user": "u", "dbname": "d", "target_session_attrs": "any",
    }  # fmt: skip


def test_one_port_is_for_all_and_none_is_5432() -> None:
    assert list(each("host=a,b port=7")) == ["a:7", "b:7"]
    assert list(each("postgresql://a,b:8/d")) == ["a:5432", "b:8"]


def test_addresses_count_where_there_are_no_names() -> None:
    assert list(each("hostaddr=10.0.0.1,10.0.0.2")) == ["10.0.0.1:5432", "10.0.0.2:5432"]
    assert list(each("dbname=d")) == ["local:5432"]
