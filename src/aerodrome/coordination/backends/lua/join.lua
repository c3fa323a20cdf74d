-- ARGV: offset, incarnation, node, load, ttl (microseconds).
local _, incarnation, node, load, ttl = unpack(ARGV)
-- The dead of the past go, or a crash loop would leave something of each of its lives.
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', NODES, '-inf', whole(now))) do
  bury(dead)
end
bury(incarnation)
redis.call('ZADD', NODES, whole(now + ttl), incarnation)
redis.call('HSET', NODE, incarnation, node)
redis.call('HSET', TTL, incarnation, ttl)
redis.call('HSET', LOAD, incarnation, load)
return 1
