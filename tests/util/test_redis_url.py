"""Addresses of Redis, as operators write them."""

from __future__ import annotations

import pytest

from aerodrome._util.redis_url import RedisUrl


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", RedisUrl("single", (("h", 6379),))),
        ("redis://h:7000/3", RedisUrl("single", (("h", 7000),), db=3)),
        ("redis://[::1]:7000/", RedisUrl("single", (("::1", 7000),))),
        ("redis://:p%40ss%2F@h", RedisUrl("single", (("h", 6379),), password="p@ss/")),
        ("redis://u:p@h?db=2", RedisUrl("single", (("h", 6379),), username="u", password="p", db=2)),
        ("rediss://h?ca_file=/ca", RedisUrl("single", (("h", 6379),), tls=True, ca_file="/ca")),
        ("unix:///run/redis.sock", RedisUrl("single", (), socket="/run/redis.sock")),
        (
            "unix://u:p@/run/redis.sock?db=1",
            RedisUrl("single", (), socket="/run/redis.sock", username="u", password="p", db=1),
        ),
        (
            "redis+sentinel://u:p@a,b:7/mymaster?db=4&sentinel_username=s&sentinel_password=x%26y",
            RedisUrl(
                "sentinel",
                (("a", 26379), ("b", 7)),
                username="u",
                password="p",
                db=4,
                master="mymaster",
                sentinel_username="s",
                sentinel_password="x&y",
            ),
        ),
        (
            "rediss+cluster://a,b:7?cert_file=c&key_file=k",
            RedisUrl("cluster", (("a", 6379), ("b", 7)), tls=True, cert_file="c", key_file="k"),
        ),
    ],
)
def test_what_can_be_written(url: str, expected: RedisUrl) -> None:
    assert RedisUrl.parse(url) == expected


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://h", "expected one of redis://"),
        ("redis:h", "expected one of redis://"),
        ("redis://", "expected HOST"),
        ("redis://h:x", "expected HOST"),
        ("redis://h:99999", "expected HOST"),
        ("redis://a,b", "several hosts need"),
        ("redis://s3cret@h", "expected USER:PASSWORD before the @"),
        ("redis://:s3#cret@h", "a # has to be written as %23"),
        ("redis://h/one", "expected the number of a database"),
        ("redis://h?timeout=1", 'there is no option "timeout" here; expected db'),
        ("redis://h?ca_file=x", 'there is no option "ca_file" here; it needs rediss; expected db'),
        ("redis://h?x", "expected NAME=VALUE"),
        ("unix://relative", "expected the absolute path"),
        ("unix://", "expected the absolute path"),
        ("redis+sentinel://a,b", "expected the name of the primary"),
        ("redis+cluster://a/1", "a cluster has no databases"),
        ("redis+cluster://a?db=1", "a cluster has no databases"),
    ],
)
def test_what_cannot_says_why_and_no_secret(url: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        RedisUrl.parse(url)
    assert words in str(caught.value)
    assert "s3" not in str(caught.value)


def test_secrets_are_not_shown() -> None:
    url = RedisUrl.parse("redis+sentinel://u:s3cret@h/m?sentinel_password=s3cret")
    assert "s3cret" not in repr(url)
